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
"""Real mounts: each server is a process of its own (see ``server.py``)."""

import dataclasses
import json
import os
import pathlib
import signal
import struct
import subprocess
import sys
import time

import blake3
import pytest

import nova_lazyimage

SERVER = pathlib.Path(__file__).with_name('server.py')
INSTANCE = '7a1f1f0e-3a53-4dc5-9c3b-2f1ac1b2ae5d'
CHUNK_BYTES = 256 << 10
KEY = bytes(range(32))


class MirrorError(Exception):
    def __init__(self, answer):
        super().__init__(f'{answer["error"]}: {answer["message"]}')
        self.kind = answer['error']
        self.errno = answer['errno']


def is_mounted(mount):
    lines = pathlib.Path('/proc/self/mountinfo').read_text().splitlines()
    return any(line.split()[4] == str(mount) for line in lines)


def wait_for(condition, what, seconds=20.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f'waited in vain for {what}'
        time.sleep(0.002)


class Process:
    """A server. Ending it never touches its mount, which may be dead."""

    def __init__(self, mount, *arguments, environment=None, pass_fds=()):
        self.mount = mount
        root = pathlib.Path(nova_lazyimage.__file__).parent.parent
        self.popen = subprocess.Popen(
            [sys.executable, str(SERVER), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                'PYTHONPATH': str(root),
                **(environment or {}),
            },
            pass_fds=pass_fds,
        )

    def kill(self):
        self.popen.kill()
        self.popen.wait()

    def end(self):
        self.popen.kill()
        # Ends the connection: nothing can wait in the mount any more.
        subprocess.run(
            ['umount', '-f', str(self.mount)],
            stderr=subprocess.DEVNULL,
            check=False,
        )
        while is_mounted(self.mount):
            subprocess.run(
                ['umount', '-l', str(self.mount)],
                stderr=subprocess.DEVNULL,
                check=False,
            )
        self.popen.wait()
        self.popen.stdin.close()
        self.popen.stdout.close()


def chunk_object(content):
    """A stored chunk as FORMAT.rst lays it out, written out by hand."""
    start = struct.pack(
        '<4sBBBBII', b'LZIM', 1, 0, 0, 0, len(content), len(content)
    )
    checksum = blake3.blake3(start + content).digest()[:8]
    return start + checksum + bytes(8) + content


def chunk_digest(content):
    return blake3.blake3(content, key=KEY).digest()


class Engine:
    """An engine in a process of its own, and the disks it was given."""

    def __init__(self, tmp_path):
        self.state = tmp_path
        self.mount = tmp_path / 'mnt'
        self.hold = tmp_path / 'hold'
        self.process = None
        self.attached = {}
        tmp_path.mkdir(exist_ok=True)
        for name in ('mnt', 'cache', 'objects', 'live'):
            (tmp_path / name).mkdir()

    def start(self, session='session-1', **options):
        self.process = Process(self.mount, 'engine', self.state)
        options.setdefault('cache_bytes', 1 << 30)
        self.call(
            'open',
            cache_directory=str(self.state / 'cache'),
            session_id=session,
            **options,
        )
        self.engine('mount', path=str(self.mount))

    def call(self, call, *, on='host', **kwargs):
        packed = {'on': on, 'call': call, 'kwargs': self._pack(kwargs)}
        print(json.dumps(packed), file=self.process.popen.stdin, flush=True)
        answer = json.loads(self.process.popen.stdout.readline())
        if 'error' in answer:
            raise MirrorError(answer)
        return answer['result']

    def engine(self, call, **kwargs):
        return self.call(call, on='engine', **kwargs)

    def mirror(self, call, **kwargs):
        """Of the disk that was attached last."""
        return self.call(call, on='mirror', **kwargs)

    def _pack(self, value):
        if isinstance(value, bytes):
            return {'hex': value.hex()}
        if isinstance(value, dict):
            return {key: self._pack(inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._pack(inner) for inner in value]
        return value

    def attach(self, content, *, disk='disk', create=True, **changes):
        """Attach a disk whose base version is ``content``."""
        digests = bytearray()
        for start in range(0, len(content), CHUNK_BYTES):
            chunk = content[start : start + CHUNK_BYTES]
            chunk = chunk.ljust(CHUNK_BYTES, b'\0')
            if not chunk.strip(b'\0'):
                digests += bytes(32)
                continue
            digest = chunk_digest(chunk)
            path = self.state / 'objects' / digest.hex()
            # A chunk may be fetched while another disk that has it too is
            # attached: what is there stays whole.
            if not path.exists():
                part = path.with_suffix('.part')
                part.write_bytes(chunk_object(chunk))
                part.rename(path)
            digests += digest
        leaf = 256 * 32
        directory = self.state / f'mirror-{disk}'
        directory.mkdir(exist_ok=True)
        self.call(
            'attach',
            **{
                'instance': INSTANCE,
                'disk': disk,
                'attach_id': f'attach-{disk}',
                'directory': str(directory),
                'live_map': str(self.state / 'live' / disk),
                'size_bytes': len(content),
                'chunk_size_bytes': CHUNK_BYTES,
                'chunk_key': KEY,
                'leaves': [
                    (
                        at // leaf,
                        bytes(digests[at : at + leaf].ljust(leaf, b'\0')),
                    )
                    for at in range(0, len(digests), leaf)
                ],
                'create': create,
                'uid': 0,
                'gid': 0,
                'mode': 0o644,
                **changes,
            },
        )
        return self.mount / INSTANCE / disk


@dataclasses.dataclass
class Served:
    """A disk's file and what stood in it at first."""

    kind: str
    path: pathlib.Path
    content: bytes
    process: Process
    restart: object = None

    def kill(self):
        self.process.kill()


@pytest.fixture
def engine(tmp_path):
    made = Engine(tmp_path)
    made.start()
    yield made
    made.process.end()


def base_content(rng, chunks=16):
    """Chunks of noise, and holes; the last chunk is not whole."""
    parts = [
        rng.randbytes(CHUNK_BYTES)
        if rng.random() < 0.6
        else bytes(CHUNK_BYTES)
        for _ in range(chunks)
    ]
    return b''.join(parts)[: -CHUNK_BYTES + 5 * 512]


@pytest.fixture(params=['passthrough', 'engine'])
def served(request, tmp_path, rng):
    """The same promises, whatever is behind the door."""
    content = base_content(rng)
    if request.param == 'passthrough':
        mount = tmp_path / 'mnt'
        mount.mkdir()
        file = tmp_path / 'file'
        file.write_bytes(content)
        process = Process(mount, 'passthrough', mount, file, 8)
        path = mount / 'passthrough' / 'file'
        wait_for(lambda: is_mounted(mount), 'the mount')
        wait_for(path.exists, 'the file')
    else:
        made = request.getfixturevalue('engine')
        path, process = made.attach(content), made.process
    yield Served(request.param, path, content, process)
    if request.param == 'passthrough':
        process.end()


@pytest.fixture
def signals_end():
    """Send ``signal`` to a process and reap it within ``seconds``."""

    def end(popen, number=signal.SIGKILL, seconds=10):
        popen.send_signal(number)
        return popen.wait(seconds)

    return end
