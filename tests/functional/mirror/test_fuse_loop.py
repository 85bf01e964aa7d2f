# Licensed under the Apache License, Version 2.0 (the "License"); you may
# not use this file except in compliance with the License. You may obtain
# a copy of the License at
#
#      http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS, WITHOUT
# WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the
# License for the specific language governing permissions and limitations
# under the License.
"""File systems on a loop device over a disk's file, as a guest has them.

The kernel's loop driver is the guest's disk: it reads, writes, flushes and
discards by the file. What is made there must be there after a COMMIT, in the
version itself, and with the next server.
"""

import contextlib
import errno
import hashlib
import os
import pathlib
import shutil
import subprocess
import time

import pytest

from tests.functional.mirror import exerciser

MIB = 1 << 20
SIZE_BYTES = 304 * MIB  # mkfs.xfs makes none below 300 MiB
CHUNK_BYTES = 256 << 10
KINDS = {
    'ext4': (
        ['mkfs.ext4', '-q', '-F', '-E', 'lazy_itable_init=0'],
        ['fsck.ext4', '-f', '-n'],
    ),
    'xfs': (['mkfs.xfs', '-q', '-f'], ['xfs_repair', '-n']),
}


def run(*command, **options):
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        check=False,
        **options,
    )
    if done.returncode:
        pytest.fail(f'{command}\n{done.stdout}{done.stderr}')
    return done.stdout


@pytest.fixture(autouse=True)
def needs_loop_devices():
    found = subprocess.run(
        ['losetup', '--find'], capture_output=True, check=False
    )
    name = found.stdout.decode().strip()
    if found.returncode or not pathlib.Path(name).exists():
        pytest.skip('no loop devices here: modprobe loop, as root')


@contextlib.contextmanager
def loop_device(path, *options):
    device = run('losetup', '--find', '--show', *options, path).strip()
    try:
        yield device
    finally:
        run('losetup', '--detach', device)


@contextlib.contextmanager
def mounted(device, at):
    at.mkdir(exist_ok=True)
    run('mount', '-o', 'discard', device, at)
    try:
        yield at
    finally:
        run('umount', at)
        wait_until_free(device)


def wait_until_free(device, seconds=60):
    """A mount namespace made meanwhile has the file system mounted too."""
    until = time.monotonic() + seconds
    while True:
        try:
            os.close(os.open(device, os.O_RDONLY | os.O_EXCL))
            return
        except OSError as exc:
            assert exc.errno == errno.EBUSY
            assert time.monotonic() < until, f'who still has {device}?'
            time.sleep(0.05)


class Tree:
    """Random changes of a tree of files, and what must be in it."""

    def __init__(self, root, rng):
        self.root = root
        self.rng = rng
        self.files = {}

    def _name(self):
        return f'd{self.rng.randrange(8)}/f{self.rng.randrange(1000)}'

    def change(self):
        rng = self.rng
        kind = rng.randrange(10)
        if kind < 4 or not self.files:
            self.write(self._name(), rng.randbytes(rng.randrange(100_000)))
        elif kind < 6:
            self.overwrite(rng.choice(list(self.files)))
        elif kind < 7:
            name = rng.choice(list(self.files))
            (self.root / name).unlink()
            del self.files[name]
        elif kind < 8:
            name, other = rng.choice(list(self.files)), self._name()
            (self.root / other).parent.mkdir(exist_ok=True)
            (self.root / name).rename(self.root / other)
            self.files[other] = self.files.pop(name)
        elif kind < 9:
            name = rng.choice(list(self.files))
            content = self.files[name]
            length = rng.randrange(2 * len(content) + 1)
            os.truncate(self.root / name, length)
            self.files[name] = content[:length].ljust(length, b'\0')
        else:
            os.sync() if rng.random() < 0.1 else self.sync()

    def write(self, name, content):
        path = self.root / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        self.files[name] = content

    def overwrite(self, name):
        content = bytearray(self.files[name])
        offset = self.rng.randrange(len(content) + 1)
        data = self.rng.randbytes(self.rng.randrange(20_000))
        content[len(content) :] = bytes(max(0, offset - len(content)))
        content[offset : offset + len(data)] = data
        with (self.root / name).open('r+b') as file:
            file.seek(offset)
            file.write(data)
        self.files[name] = bytes(content)

    def sync(self):
        fd = os.open(self.root / self.rng.choice(list(self.files)), os.O_RDWR)
        os.fsync(fd)
        os.close(fd)

    def run(self, changes):
        for _ in range(changes):
            self.change()

    def check(self, root=None):
        root = root or self.root
        found = {
            str(path.relative_to(root)): digest(path.read_bytes())
            for path in root.rglob('*')
            if path.is_file()
        }
        wanted = {
            name: digest(content) for name, content in self.files.items()
        }
        assert found == wanted


def digest(content):
    return hashlib.blake2b(content).hexdigest()


def commit(engine, version):
    """COMMIT to a plain file, which holds the parent so far."""
    engine.call('freeze')
    with version.open('r+b') as file:
        for chunk in engine.call('chunks', on='sealed'):
            answer = engine.call('read', on='sealed', chunk=chunk)
            file.seek(chunk * CHUNK_BYTES)
            file.write(bytes.fromhex(answer['hex']))
            engine.call('uploaded', on='sealed', chunk=chunk)
    engine.call('publish', on='sealed')


@pytest.fixture
def version(tmp_path):
    path = tmp_path / 'version'
    with path.open('wb') as file:
        file.truncate(SIZE_BYTES)
    return path


@pytest.mark.soak
@pytest.mark.parametrize('kind', KINDS)
def test_a_file_system_is_whole_in_the_disk_its_version_and_the_next_server(
    engine, rng, tmp_path, version, kind
):
    make, verify = KINDS[kind]
    at = tmp_path / 'guest'

    def attach(create):
        return engine.attach(b'', size_bytes=SIZE_BYTES, create=create)

    path = attach(True)
    with loop_device(path) as device:
        run(*make, device)
        with mounted(device, at):
            tree = Tree(at, rng)
            for _ in exerciser.rounds():
                tree.run(300)
                fio(at)
            run('fsfreeze', '--freeze', at)
            commit(engine, version)
            run('fsfreeze', '--unfreeze', at)
            kept = dict(tree.files)
            tree.run(150)
            # Discards what was deleted; kept blocks must stand.
            run('fstrim', at)
            tree.check()
        run(*verify, device)
    last = path.read_bytes()
    engine.engine('stop')
    engine.process.kill()
    engine.start()
    path = attach(False)
    with loop_device(path, '--direct-io=on') as device:
        run(*verify, device)
        with mounted(device, at):
            tree.check()
            tree.run(50)
            tree.check()
    assert path.read_bytes() != last
    # The version has a journal to replay, as after a guest's power loss.
    with loop_device(version) as device:
        with mounted(device, at):
            Tree.check(type('Kept', (), {'files': kept, 'root': at})())
        run(*verify, device)


def test_fio_trims_and_writes_the_device(engine, rng, tmp_path):
    """Trims are the guest's discards: whole ranges read as zeros."""
    path = engine.attach(rng.randbytes(16 * MIB))
    with loop_device(path, '--direct-io=on') as device:
        for depth in (1, 16):
            run(
                'fio', '--name=trim', f'--filename={device}', '--direct=1',
                '--ioengine=libaio', f'--iodepth={depth}',
                '--rw=randtrimwrite', '--bs=8k', '--size=3m',
                '--verify=crc32c', '--verify_fatal=1',
                '--verify_state_save=0', cwd=tmp_path,
            )  # fmt: skip
        run('blkdiscard', '--offset', 5 * 512, '--length', 3 * MIB, device)
        start, end = 5 * 512, 5 * 512 + 3 * MIB
        assert not any(path.read_bytes()[start:end])
        run('blkdiscard', '--zeroout', device)
    assert not any(path.read_bytes())


def fio(at):
    """Verified traffic within the file system; nothing of it stays."""
    folder = pathlib.Path(at) / 'fio'
    folder.mkdir()
    run(
        'fio', '--name=verify', f'--directory={folder}', '--direct=1',
        '--ioengine=libaio', '--iodepth=16', '--rw=randrw',
        '--bsrange=4k-128k', '--size=16m',
        '--verify=crc32c', '--verify_fatal=1', '--fsync=32',
        '--verify_state_save=0',
    )  # fmt: skip
    shutil.rmtree(folder)
