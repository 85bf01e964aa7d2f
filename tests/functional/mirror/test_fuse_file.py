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
"""A disk's file below the mount behaves as a raw disk's file does.

Each promise is kept by the FUSE layer alone (over one plain file) and by the
engine behind it.
"""

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import pathlib
import stat
import subprocess
import sys
import time

import pytest

PUNCH_HOLE = 0x02 | 0x01
ZERO_RANGE = 0x10
KEEP_SIZE = 0x01
libc = ctypes.CDLL(None, use_errno=True)


def fallocate(fd, mode, offset, length):
    result = libc.fallocate(
        fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)
    )
    if result:
        raise OSError(ctypes.get_errno(), 'fallocate')


class File:
    """The disk's file, opened both ways, beside a model of its content."""

    def __init__(self, served):
        self.path = served.path
        self.model = bytearray(served.content)
        self.buffered = os.open(served.path, os.O_RDWR)
        self.direct = os.open(served.path, os.O_RDWR | os.O_DIRECT)
        self.aligned = mmap.mmap(-1, 1 << 20)

    def close(self):
        os.close(self.buffered)
        os.close(self.direct)
        self.aligned.close()

    def write_direct(self, offset, data):
        self.aligned[: len(data)] = data
        with memoryview(self.aligned)[: len(data)] as view:
            assert os.pwrite(self.direct, view, offset) == len(data)
        self.model[offset : offset + len(data)] = data

    def write(self, offset, data):
        assert os.pwrite(self.buffered, data, offset) == len(data)
        self.model[offset : offset + len(data)] = data

    def read_direct(self, offset, length):
        with memoryview(self.aligned)[:length] as view:
            got = os.preadv(self.direct, [view], offset)
        return self.aligned[:got]

    def zero(self, mode, offset, length):
        fallocate(self.buffered, mode, offset, length)
        end = min(offset + length, len(self.model))
        self.model[offset:end] = bytes(end - offset)

    def check(self):
        got = os.pread(self.buffered, len(self.model) + 1, 0)
        while len(got) < len(self.model):
            more = os.pread(self.buffered, len(self.model), len(got))
            assert more, f'the file ends at {len(got)}'
            got += more
        assert got == self.model


@pytest.fixture
def file(served):
    opened = File(served)
    yield opened
    opened.close()


class TestContent:
    def test_it_reads_as_what_is_behind_it(self, file):
        file.check()
        for offset in (0, 4096, 1 << 20):
            expected = bytes(file.model[offset : offset + 65536])
            assert file.read_direct(offset, 65536) == expected

    def test_any_mix_of_requests_leaves_what_a_plain_file_would_hold(
        self, file, rng
    ):
        size = len(file.model)

        def place(unit, longest):
            offset = rng.randrange(size // unit) * unit
            length = rng.randrange(1, longest // unit + 1) * unit
            return offset, min(length, size - offset)

        for _ in range(300):
            kind = rng.randrange(6)
            if kind == 0:
                offset, length = place(512, 128 << 10)
                file.write_direct(offset, rng.randbytes(length))
            elif kind == 1:
                offset, length = place(1, 10_000)
                file.write(offset, rng.randbytes(length))
            elif kind == 2:
                offset, length = place(512, 256 << 10)
                expected = bytes(file.model[offset : offset + length])
                assert file.read_direct(offset, length) == expected
            elif kind == 3:
                offset, length = place(1, 100_000)
                expected = bytes(file.model[offset : offset + length])
                assert os.pread(file.buffered, length, offset) == expected
            elif kind == 4:
                unit = rng.choice((1, 512, 4096, 65536))
                file.zero(PUNCH_HOLE, *place(unit, 256 << 10))
            else:
                unit = rng.choice((1, 512, 4096, 65536))
                file.zero(ZERO_RANGE, *place(unit, 256 << 10))
        os.fsync(file.buffered)
        file.check()

    def test_a_buffered_reader_sees_a_direct_write_at_once(self, file, rng):
        for _ in range(50):
            data = rng.randbytes(4096)
            file.write_direct(8192, data)
            assert os.pread(file.buffered, 4096, 8192) == data

    def test_a_direct_reader_sees_a_buffered_write_at_once(self, file, rng):
        for _ in range(50):
            data = rng.randbytes(100)
            file.write(8200, data)
            assert file.read_direct(8192, 4096)[8:108] == data

    def test_a_write_of_a_mebibyte_is_taken_whole(self, file, rng):
        file.write_direct(4096, rng.randbytes(1 << 20))
        file.check()

    def test_a_private_mapping_shows_the_content(self, file):
        with mmap.mmap(
            file.buffered, 65536, mmap.MAP_PRIVATE, mmap.PROT_READ
        ) as mapped:
            assert mapped[:] == file.model[:65536]

    def test_synchronous_writes_read_back(self, file, rng):
        data = rng.randbytes(4096)
        for flag in (os.O_DSYNC, os.O_SYNC):
            fd = os.open(file.path, os.O_WRONLY | flag)
            assert os.pwrite(fd, data, 12288) == 4096
            os.close(fd)
        file.model[12288:16384] = data
        file.check()


class TestSize:
    def test_a_read_at_the_end_is_short_and_past_it_empty(self, file):
        size = len(file.model)
        expected = bytes(file.model[-100:])
        assert os.pread(file.buffered, 4096, size - 100) == expected
        assert os.pread(file.buffered, 4096, size) == b''
        assert os.pread(file.buffered, 4096, size + (1 << 30)) == b''

    def test_a_write_past_the_end_is_refused_and_changes_nothing(self, file):
        size = len(file.model)
        for offset in (size - 1, size, size + 4096):
            with pytest.raises(OSError) as caught:
                os.pwrite(file.buffered, b'ab', offset)
            assert caught.value.errno == errno.EFBIG
        file.check()

    def test_truncating_is_refused_unless_nothing_changes(self, file):
        size = len(file.model)
        for wanted in (0, size - 512, size + 512):
            with pytest.raises(PermissionError):
                os.ftruncate(file.buffered, wanted)
        with pytest.raises(PermissionError):
            os.open(file.path, os.O_WRONLY | os.O_TRUNC)
        os.ftruncate(file.buffered, size)
        assert os.stat(file.path).st_size == size
        file.check()


class TestHoles:
    def test_a_punched_hole_is_zeros_partial_blocks_included(self, file):
        file.write(0, b'x' * 65536)
        file.zero(PUNCH_HOLE, 5000, 30_001)
        file.check()

    def test_a_zeroed_range_is_zeros_to_the_byte(self, file):
        file.write(0, b'x' * 65536)
        file.zero(ZERO_RANGE, 1, 40_000)
        file.zero(ZERO_RANGE | KEEP_SIZE, 50_000, 513)
        file.check()

    def test_a_hole_past_the_end_ends_there(self, file):
        size = len(file.model)
        file.zero(PUNCH_HOLE, size - 6000, 1 << 20)
        with pytest.raises(OSError) as caught:
            fallocate(file.buffered, ZERO_RANGE, size - 6000, 1 << 20)
        assert caught.value.errno == errno.EFBIG
        file.check()

    def test_other_kinds_of_allocation_are_not_supported(self, file):
        for mode in (0, KEEP_SIZE, 0x08, 0x20):  # collapse, insert
            with pytest.raises(OSError) as caught:
                fallocate(file.buffered, mode, 0, 65536)
            assert caught.value.errno == errno.EOPNOTSUPP
        file.zero(PUNCH_HOLE, 0, 4096)

    def test_seeking_finds_every_byte_that_is_not_zero(self, file):
        size = len(file.model)
        file.zero(PUNCH_HOLE, 0, size)
        file.write_direct(1 << 20, b'd' * 4096)
        at = os.lseek(file.buffered, 0, os.SEEK_DATA)
        assert at <= 1 << 20
        hole = os.lseek(file.buffered, 1 << 20, os.SEEK_HOLE)
        assert (1 << 20) + 4096 <= hole <= size
        covered, at = bytearray(size), 0
        while True:
            try:
                at = os.lseek(file.buffered, at, os.SEEK_DATA)
            except OSError as exc:
                assert exc.errno == errno.ENXIO
                break
            hole = os.lseek(file.buffered, at, os.SEEK_HOLE)
            covered[at:hole] = file.model[at:hole]
            at = hole
        assert covered == file.model

    def test_seeking_past_the_end_finds_nothing(self, file):
        for whence in (os.SEEK_DATA, os.SEEK_HOLE):
            with pytest.raises(OSError) as caught:
                os.lseek(file.buffered, len(file.model), whence)
            assert caught.value.errno == errno.ENXIO

    def test_st_blocks_follows_what_is_local(self, file):
        file.zero(PUNCH_HOLE, 0, len(file.model))
        before = os.stat(file.path).st_blocks
        file.write_direct(0, b'x' * 65536)
        assert os.stat(file.path).st_blocks - before == 128


class TestOwner:
    def test_owner_and_mode_are_what_they_were_set_to(self, served):
        os.chown(served.path, 64055, 108)
        os.chmod(served.path, 0o600)
        found = os.stat(served.path)
        assert (found.st_uid, found.st_gid) == (64055, 108)
        assert found.st_mode == stat.S_IFREG | 0o600

    def test_times_are_what_they_were_set_to_until_a_write(self, served):
        os.utime(served.path, (1_000_000_000, 1_100_000_000))
        found = os.stat(served.path)
        assert (found.st_atime, found.st_mtime) == (1e9, 1.1e9)
        before = time.time() - 1
        fd = os.open(served.path, os.O_WRONLY)
        os.pwrite(fd, b'x', 0)
        os.close(fd)
        assert os.stat(served.path).st_mtime >= before

    def test_only_its_owner_may_open_it(self, served):
        os.chown(served.path, 64055, 64055)
        os.chmod(served.path, 0o600)
        # The test's own folders are root's: reach the file by descriptor.
        program = (
            'import os, sys\n'
            'os.fchdir(int(sys.argv[1]))\n'
            'os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))\n'
            'os.open(sys.argv[3], os.O_RDWR)\n'
        )
        fd = os.open(served.path.parent, os.O_RDONLY)
        python = [sys.executable, '-I', '-c', program]

        def opens(user):
            done = subprocess.run(
                [*python, str(fd), user, served.path.name],
                pass_fds=[fd],
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0 or 'PermissionError' in done.stderr
            return done.returncode == 0

        assert opens('64055')
        assert not opens('64056')
        os.close(fd)

    def test_locks_are_kept_by_the_kernel(self, served):
        first = os.open(served.path, os.O_RDWR)
        second = os.open(served.path, os.O_RDWR)
        fcntl.flock(first, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(first, fcntl.LOCK_UN)
        fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(first)
        os.close(second)


class TestTree:
    def test_it_has_two_levels(self, served):
        mount = served.path.parent.parent
        found = {str(path.relative_to(mount)) for path in mount.rglob('*')}
        assert found == {
            served.path.parent.name,
            f'{served.path.parent.name}/{served.path.name}',
        }
        assert stat.S_ISDIR(mount.stat().st_mode)

    def test_nothing_can_be_made_removed_or_renamed(self, served):
        other = served.path.with_name('other')
        attempts = [
            lambda: other.write_bytes(b''),
            lambda: other.mkdir(),
            lambda: other.symlink_to('x'),
            lambda: os.link(served.path, other),
            lambda: served.path.unlink(),
            lambda: served.path.rename(other),
            lambda: served.path.parent.rmdir(),
        ]
        for attempt in attempts:
            with pytest.raises(PermissionError):
                attempt()
        assert not other.exists()
        assert served.path.exists()

    def test_a_name_that_is_not_there_is_not_found(self, served):
        assert not served.path.with_name('other').exists()
        assert not (served.path.parent.parent / 'other' / 'disk').exists()

    def test_extended_attributes_and_controls_are_refused_as_plainly(
        self, served
    ):
        with pytest.raises(OSError) as caught:
            os.setxattr(served.path, 'trusted.libvirt.security.dac', b'x')
        assert caught.value.errno == errno.EOPNOTSUPP
        fd = os.open(served.path, os.O_RDWR)
        with pytest.raises(OSError) as caught:
            fcntl.ioctl(fd, 0x80081272, bytes(8))  # BLKGETSIZE64
        assert caught.value.errno == errno.ENOTTY
        os.close(fd)

    def test_the_mount_says_what_it_is(self, served):
        mount = served.path.parent.parent
        lines = pathlib.Path('/proc/self/mountinfo').read_text().splitlines()
        [line] = [line for line in lines if line.split()[4] == str(mount)]
        options, kind = line.split()[5], line.split(' - ')[1]
        assert {'nosuid', 'nodev'} <= set(options.split(','))
        assert kind.startswith('fuse.lazyimage lazyimage ')
        assert 'default_permissions' in kind

    def test_the_kernel_may_keep_65535_requests_waiting(
        self, served, tmp_path
    ):
        control = tmp_path / 'control'
        control.mkdir()
        command = ['mount', '-t', 'fusectl', 'none', str(control)]
        subprocess.run(command, check=True)
        try:
            minor = os.minor(os.stat(served.path).st_dev)
            limit = control / str(minor) / 'max_background'
            assert limit.read_text() == '65535\n'
        finally:
            subprocess.run(['umount', str(control)], check=True)


class TestServer:
    def test_fio_finds_no_block_that_it_did_not_write(self, served, tmp_path):
        command = [
            'fio', '--name=verify', f'--filename={served.path}',
            '--direct=1', '--ioengine=libaio', '--iodepth=16',
            '--rw=randwrite', '--bsrange=4k-64k', '--blockalign=4k',
            '--size=3m', '--io_size=12m', '--verify=crc32c',
            '--verify_fatal=1', '--randrepeat=0', '--allow_file_create=0',
        ]  # fmt: skip
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def test_a_killed_server_leaves_errors_and_no_waiting_process(
        self, served
    ):
        fd = os.open(served.path, os.O_RDONLY)
        served.kill()
        with pytest.raises(OSError) as caught:
            os.pread(fd, 4096, 0)
        assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
        with contextlib.suppress(OSError):
            os.close(fd)
