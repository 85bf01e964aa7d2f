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
"""Each system call on a disk's file: the list of reference/disk-file.rst.

Beside ``test_fuse_file.py``, which has reads, writes, sizes and holes.
"""

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import select
import struct
import subprocess
import sys

import pytest

FUSE_SUPER_MAGIC = 0x65735546
RWF_DSYNC, RWF_NOWAIT = 2, 8
FIGETBSZ, FS_IOC_FIEMAP = 2, 0xC020660B
CHUNK_BYTES = 256 << 10
LOCK = """
import fcntl, sys
try:
    file = open(sys.argv[1], 'r+b')
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 0)
except OSError as exc:
    sys.exit(exc.errno)
"""


@contextlib.contextmanager
def opened(path, flags=os.O_RDWR):
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def refused(*numbers):
    with pytest.raises(OSError) as caught:
        yield
    assert caught.value.errno in numbers


class TestOpen:
    @pytest.mark.parametrize(
        'flags',
        [
            os.O_RDONLY,
            os.O_WRONLY,
            os.O_RDWR,
            os.O_RDWR | os.O_CREAT,
            os.O_RDWR | os.O_DIRECT,
            os.O_RDWR | os.O_DIRECT | os.O_DSYNC,
            os.O_RDWR | os.O_SYNC,
            os.O_RDWR | os.O_NONBLOCK,
            os.O_RDWR | os.O_NOATIME,
            os.O_PATH,
        ],
    )
    def test_these_flags_are_taken(self, served, flags):
        with opened(served.path, flags):
            pass

    @pytest.mark.parametrize(
        ('flags', 'number'),
        [
            (os.O_RDWR | os.O_TRUNC, errno.EPERM),
            (os.O_RDWR | os.O_CREAT | os.O_EXCL, errno.EEXIST),
            (os.O_RDONLY | os.O_DIRECTORY, errno.ENOTDIR),
        ],
    )
    def test_these_are_refused(self, served, flags, number):
        with refused(number):
            os.open(served.path, flags)

    def test_no_nameless_file_is_made_beside_it(self, served):
        with refused(errno.EPERM, errno.EOPNOTSUPP):
            os.open(served.path.parent, os.O_TMPFILE | os.O_RDWR)

    def test_appending_is_writing_past_the_end(self, served):
        with opened(served.path, os.O_WRONLY | os.O_APPEND) as fd:
            with refused(errno.EFBIG):
                os.write(fd, b'x')

    def test_a_reader_cannot_write_nor_a_writer_read(self, served):
        with opened(served.path, os.O_RDONLY) as fd:
            with refused(errno.EBADF):
                os.pwrite(fd, b'x', 0)
        with opened(served.path, os.O_WRONLY) as fd:
            with refused(errno.EBADF):
                os.pread(fd, 1, 0)


class TestDirect:
    def test_it_asks_for_whole_sectors_as_a_raw_file_does(self, served):
        with opened(served.path, os.O_RDWR | os.O_DIRECT) as fd:
            page = mmap.mmap(-1, 4096)
            for offset, length in ((0, 511), (1, 512), (0, 513)):
                with memoryview(page)[:length] as view:
                    with refused(errno.EINVAL):
                        os.preadv(fd, [view], offset)
                    with refused(errno.EINVAL):
                        os.pwritev(fd, [view], offset)
            for offset, length in ((0, 512), (512, 1536)):
                with memoryview(page)[:length] as view:
                    assert os.preadv(fd, [view], offset) == length
                    assert os.pwritev(fd, [view], offset) == length
            page.close()


class TestMappings:
    def test_a_shared_one_is_refused(self, served):
        """Its pages would be a second truth beside direct requests'."""
        with opened(served.path) as fd:
            for protection in (mmap.PROT_READ, mmap.PROT_WRITE):
                with refused(errno.ENODEV):
                    mmap.mmap(fd, 4096, mmap.MAP_SHARED, protection)

    def test_what_is_written_in_a_private_one_stays_there(self, served):
        with opened(served.path) as fd:
            with mmap.mmap(fd, 4096, mmap.MAP_PRIVATE) as mapped:
                assert mapped[:] == served.content[:4096]
                mapped[:4] = b'mine'
            assert os.pread(fd, 4096, 0) == served.content[:4096]


class TestSyncing:
    def flushes(self, engine):
        return engine.mirror('status')['flushes_total']

    @pytest.mark.parametrize(
        'how', ['fsync', 'fdatasync', 'O_DSYNC'] + ['O_SYNC', 'RWF_DSYNC']
    )
    def test_each_way_is_one_flush(self, engine, rng, how):
        path = engine.attach(rng.randbytes(CHUNK_BYTES))
        flags = getattr(os, how) if how.startswith('O_') else 0
        with opened(path, os.O_RDWR | flags) as fd:
            before = self.flushes(engine)
            if how.startswith('O_'):
                os.pwrite(fd, b'x' * 4096, 0)
            elif how.startswith('RWF_'):
                os.pwritev(fd, [b'x' * 4096], 0, RWF_DSYNC)
            else:
                getattr(os, how)(fd)
            # Changed pages are flushed every few seconds too.
            assert self.flushes(engine) - before in (1, 2)

    def test_closing_is_no_flush(self, engine, rng):
        path = engine.attach(rng.randbytes(CHUNK_BYTES))
        with opened(path) as fd:
            before = self.flushes(engine)
        assert self.flushes(engine) == before
        assert fd >= 0

    def test_the_others_do_nothing_and_say_so(self, served):
        with opened(served.path) as fd:
            libc = ctypes.CDLL(None, use_errno=True)
            assert libc.syncfs(fd) == 0
            zero = ctypes.c_int64(0)
            assert libc.sync_file_range(fd, zero, zero, 7) == 0
            folder = os.open(served.path.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)


class TestLocks:
    def test_ranges_are_locked_by_description_as_qemu_does(self, served):
        kind = struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 100, 1, 0)
        set_lock = 37  # F_OFD_SETLK
        first, second = os.open(served.path, os.O_RDWR), None
        try:
            second = os.open(served.path, os.O_RDWR)
            fcntl.fcntl(first, set_lock, kind)
            with refused(errno.EAGAIN):
                fcntl.fcntl(second, set_lock, kind)
            os.close(first)
            first = None
            fcntl.fcntl(second, set_lock, kind)
        finally:
            for fd in filter(None, (first, second)):
                os.close(fd)

    def test_ranges_are_locked_by_process(self, served):
        with opened(served.path) as fd:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 0)
            done = subprocess.run(
                [sys.executable, '-I', '-c', LOCK, str(served.path)],
                check=False,
            )
            assert done.returncode in (errno.EAGAIN, errno.EACCES)


class TestCopying:
    def test_the_kernel_copies_a_range(self, served):
        with opened(served.path) as fd:
            assert os.copy_file_range(fd, fd, 5000, 100, 50_001) == 5000
            assert os.pread(fd, 5000, 50_001) == served.content[100:5100]

    def test_it_is_sent_to_a_socket_and_spliced_to_a_pipe(self, served):
        reader, writer = os.pipe()
        with opened(served.path) as fd:
            assert os.sendfile(writer, fd, 300, 3000) == 3000
            assert os.read(reader, 3000) == served.content[300:3300]
            assert os.splice(fd, writer, 3000, offset_src=77) == 3000
            assert os.read(reader, 3000) == served.content[77:3077]
        os.close(reader)
        os.close(writer)

    def test_a_clone_of_blocks_is_refused(self, served):
        with opened(served.path) as fd, opened(served.path) as other:
            with refused(errno.EOPNOTSUPP):
                fcntl.ioctl(fd, 0x40049409, other)  # FICLONE


class TestFacts:
    def test_stat(self, served):
        found = os.stat(served.path)
        assert found.st_size == len(served.content)
        assert (found.st_nlink, found.st_rdev) == (1, 0)
        assert found.st_blksize == 4096
        folder = os.stat(served.path.parent)
        assert (folder.st_uid, folder.st_gid) == (0, 0)
        assert folder.st_mode & 0o7777 == 0o755

    def test_statfs_counts_what_is_local_as_used(self, served):
        found = os.statvfs(served.path)
        assert (found.f_bsize, found.f_namemax) == (4096, 255)
        assert found.f_blocks == -(-len(served.content) // 4096)
        assert found.f_bfree == found.f_bavail <= found.f_blocks
        kind = subprocess.run(
            ['stat', '--file-system', '--format=%t', str(served.path)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert int(kind.stdout, 16) == FUSE_SUPER_MAGIC

    def test_attributes_of_other_kinds_are_not_supported(self, served):
        names = ('user.x', 'security.selinux', 'trusted.libvirt.x')
        for name in names:
            with refused(errno.EOPNOTSUPP):
                os.getxattr(served.path, name)
            with refused(errno.EOPNOTSUPP):
                os.setxattr(served.path, name, b'x')
        with contextlib.suppress(OSError):
            assert os.listxattr(served.path) == []

    def test_controls(self, served):
        with opened(served.path) as fd:
            size = bytearray(4)
            fcntl.ioctl(fd, FIGETBSZ, size)
            assert struct.unpack('i', size)[0] in (4096, 1 << 20)
            with refused(errno.EOPNOTSUPP, errno.ENOTTY):
                fcntl.ioctl(fd, FS_IOC_FIEMAP, bytearray(32))
            for number in (0x1260, 0x1268, 0x5413, 0x127B):
                with refused(errno.ENOTTY):
                    fcntl.ioctl(fd, number, bytearray(8))

    def test_it_is_always_ready(self, served):
        with opened(served.path) as fd:
            poll = select.poll()
            poll.register(fd)
            assert poll.poll(0) == [(fd, select.POLLIN | select.POLLOUT)]

    def test_advice_is_taken_and_changes_nothing(self, served):
        with opened(served.path) as fd:
            for advice in (os.POSIX_FADV_DONTNEED, os.POSIX_FADV_WILLNEED):
                os.posix_fadvise(fd, 0, 0, advice)
            assert os.pread(fd, 512, 0) == served.content[:512]

    def test_a_read_that_must_not_wait_says_that_it_would(self, served):
        with opened(served.path) as fd:
            with refused(errno.EAGAIN, errno.EOPNOTSUPP):
                os.preadv(fd, [bytearray(512)], 0, RWF_NOWAIT)
