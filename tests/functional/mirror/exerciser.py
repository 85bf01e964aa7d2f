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
"""Random operations on a disk's file, beside an array of bytes.

What fsx does for a file system, for a disk: its file keeps its size, is
COMMITted while it is written, and is served by one process after another. The
operations follow from ``rng`` alone, so that a seed repeats a failure; the
last ones are in its message. One operation is under way at a time: whatever
the file answers is thus what the array says, to the byte.
"""

import collections
import ctypes
import errno
import itertools
import mmap
import os
import subprocess
import time

CHUNK_BYTES = 256 << 10
BLOCK_BYTES = 4096
LENGTH_MAX = 300_000
KEEP_SIZE = 0x01
PUNCH_HOLE = 0x02 | KEEP_SIZE
ZERO_RANGE = 0x10
REMEMBERED = 30
_libc = ctypes.CDLL(None, use_errno=True)


def fallocate(fd, mode, offset, length):
    """fallocate(2), which ``os`` has in its plain form only."""
    result = _libc.fallocate(
        fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)
    )
    if result:
        raise OSError(ctypes.get_errno(), 'fallocate')


def rounds():
    """One; with ``LAZYIMAGE_SOAK`` as many as there is time for."""
    seconds = float(os.environ.get('LAZYIMAGE_SOAK_SECONDS', '60'))
    is_soak = bool(os.environ.get('LAZYIMAGE_SOAK'))
    until = time.monotonic() + seconds * is_soak
    yield 0
    for number in itertools.count(1):
        if time.monotonic() >= until:
            return
        yield number


class Mismatch(AssertionError):
    """The file and the array differ."""


class Exerciser:
    """A disk's file and what must stand in it.

    :param engine: where the disk is attached, last
    :param path: its file
    :param content: what stands in it now, its base version
    :param rng: decides everything
    """

    def __init__(self, engine, path, content, rng):
        self.engine = engine
        self.path = path
        self.rng = rng
        self.base = content
        self.disk = bytearray(content)
        self.version = bytearray(content)
        self.sealed = None  # (the disk at the freeze, chunks to upload)
        self.aligned = mmap.mmap(-1, 1 << 20)
        self.done = collections.Counter()
        self._last = collections.deque(maxlen=REMEMBERED)
        self._fds = {}
        self._open()

    def _open(self):
        self._fds = {
            'buffered': os.open(self.path, os.O_RDWR),
            'direct': os.open(self.path, os.O_RDWR | os.O_DIRECT),
            'dsync': os.open(self.path, os.O_RDWR | os.O_DSYNC),
        }

    def close(self):
        for fd in self._fds.values():
            try:
                os.close(fd)
            except OSError as exc:  # of a server that is gone
                assert exc.errno in (errno.ENOTCONN, errno.ECONNABORTED)
        self._fds = {}

    # Where and how much.

    def _offset(self, unit):
        """Often beside the end of a block, a chunk or the disk."""
        size = len(self.disk)
        near = self.rng.choice(
            (
                self.rng.randrange(size),
                self.rng.randrange(size),
                self.rng.randrange(size // BLOCK_BYTES + 1) * BLOCK_BYTES,
                self.rng.randrange(size // CHUNK_BYTES + 1) * CHUNK_BYTES,
                size,
            )
        )
        near += self.rng.choice((0, 0, -BLOCK_BYTES, self.rng.randint(-9, 9)))
        return min(max(near, 0), size - 1) // unit * unit

    def _span(self, unit=1, longest=LENGTH_MAX):
        offset = self._offset(unit)
        length = self.rng.choice(
            (
                self.rng.randrange(1, 600),
                self.rng.randrange(1, 9) * BLOCK_BYTES,
                self.rng.randrange(1, longest),
            )
        )
        length = -(-length // unit) * unit
        left = (len(self.disk) - offset) // unit * unit
        return offset, min(length, left)

    # Operations.

    def _expect(self, what, offset, length, got):
        wanted = bytes(self.disk[offset : offset + length])
        if got != wanted:
            at = next(
                (
                    i
                    for i, (a, b) in enumerate(zip(got, wanted, strict=False))
                    if a != b
                ),
                min(len(got), len(wanted)),
            )
            at += offset
            raise Mismatch(
                f'{what} of {length} bytes at {offset} differs at byte {at} '
                f'(block {at // BLOCK_BYTES}, chunk {at // CHUNK_BYTES}); '
                f'{len(got)} bytes came; last operations: {list(self._last)}'
            )

    def read(self):
        offset, length = self._span()
        got = os.pread(self._fds['buffered'], length, offset)
        self._expect('a read', offset, length, got)

    def read_direct(self):
        offset, length = self._span(512)
        with memoryview(self.aligned)[:length] as view:
            got = os.preadv(self._fds['direct'], [view], offset)
        self._expect('a direct read', offset, length, self.aligned[:got])

    def read_in_parts(self):
        offset, length = self._span()
        parts = [bytearray(-(-length // 3)) for _ in range(3)]
        got = os.preadv(self._fds['buffered'], parts, offset)
        got = b''.join(parts)[: min(got, length)]
        self._expect('a vectored read', offset, length, got)

    def read_mapped(self):
        offset, length = self._span()
        start = offset // mmap.PAGESIZE * mmap.PAGESIZE
        with mmap.mmap(
            self._fds['buffered'],
            offset + length - start,
            mmap.MAP_PRIVATE,
            mmap.PROT_READ,
            offset=start,
        ) as mapped:
            self._expect('a mapping', offset, length, mapped[offset - start :])

    def _write(self, how, unit):
        offset, length = self._span(unit)
        data = self.rng.randbytes(length)
        if how == 'direct':
            self.aligned[:length] = data
            with memoryview(self.aligned)[:length] as view:
                wrote = os.pwrite(self._fds[how], view, offset)
        else:
            wrote = os.pwrite(self._fds[how], data, offset)
        assert wrote == length, f'{wrote} of {length} bytes at {offset}'
        self.disk[offset : offset + length] = data

    def write(self):
        self._write('buffered', 1)

    def write_direct(self):
        self._write('direct', 512)

    def write_durably(self):
        self._write('dsync', 1)

    def copy(self):
        """copy_file_range(2) within the file, which the kernel carries out."""
        source, length = self._span(longest=100_000)
        target = self._offset(1)
        length = min(length, len(self.disk) - target, abs(target - source))
        if not length:
            return
        fd = self._fds['buffered']
        copied = 0
        while copied < length:
            some = os.copy_file_range(
                fd, fd, length - copied, source + copied, target + copied
            )
            assert some, f'copied {copied} of {length}'
            copied += some
        data = self.disk[source : source + length]
        self.disk[target : target + length] = data

    def _zero(self, mode):
        unit = self.rng.choice((1, 512, BLOCK_BYTES, 65536))
        offset, length = self._span(unit)
        if not length:
            return
        fallocate(self._fds['buffered'], mode, offset, length)
        self.disk[offset : offset + length] = bytes(length)

    def punch(self):
        self._zero(PUNCH_HOLE)

    def zero(self):
        self._zero(self.rng.choice((ZERO_RANGE, ZERO_RANGE | KEEP_SIZE)))

    def punch_past_the_end(self):
        offset = self._offset(1)
        fallocate(self._fds['buffered'], PUNCH_HOLE, offset, 1 << 30)
        # Not often: it would leave little of the base to look at.
        self.disk[offset:] = bytes(len(self.disk) - offset)

    def sync(self):
        self.rng.choice((os.fsync, os.fdatasync))(self._fds['buffered'])

    def seek(self):
        """What no data is said to be in reads as zeros."""
        fd, size = self._fds['buffered'], len(self.disk)
        at = self._offset(1)
        for _ in range(20):
            try:
                data = os.lseek(fd, at, os.SEEK_DATA)
            except OSError as exc:
                assert exc.errno == errno.ENXIO
                data = size
            if any(self.disk[at:data]):
                raise Mismatch(f'data in a hole of {at} to {data}')
            if data == size:
                return
            at = os.lseek(fd, data, os.SEEK_HOLE)
            assert data < at <= size
            if at == size:
                return

    def refuse(self):
        """Nothing that would change the size, or an odd direct request."""
        size, fd = len(self.disk), self._fds['buffered']
        offset = self._offset(512)
        attempts = (
            (errno.EPERM, lambda: os.ftruncate(fd, self._offset(1))),
            (errno.EPERM, lambda: os.ftruncate(fd, size + 1)),
            (errno.EFBIG, lambda: os.pwrite(fd, b'ab', size - 1)),
            (errno.EFBIG, lambda: fallocate(fd, ZERO_RANGE, size, 1)),
            (errno.EOPNOTSUPP, lambda: fallocate(fd, 0, offset, 4096)),
            (
                errno.EINVAL,
                lambda: os.pread(self._fds['direct'], 511, offset),
            ),
        )
        wanted, attempt = self.rng.choice(attempts)
        try:
            attempt()
        except OSError as exc:
            assert exc.errno == wanted
        else:
            raise Mismatch('what must be refused was done')

    def reopen(self):
        self.close()
        self._open()

    def grow(self):
        if len(self.disk) > 2 * len(self.base) + CHUNK_BYTES:
            return
        more = self.rng.choice((1, 512, BLOCK_BYTES, CHUNK_BYTES + 512))
        for kept in (self.disk, self.version):
            kept += bytes(more)
        self.engine.mirror('grow', size_bytes=len(self.disk))
        assert os.fstat(self._fds['buffered']).st_size == len(self.disk)

    # COMMIT and the server's life.

    def freeze(self):
        if self.sealed is None:
            self.done['frozen'] += 1
            self.engine.call('freeze')
            chunks = self.engine.call('chunks', on='sealed')
            self.sealed = (bytes(self.disk), chunks)

    def upload(self):
        if self.sealed is None or not self.sealed[1]:
            return
        frozen, chunks = self.sealed
        chunk = chunks.pop(self.rng.randrange(len(chunks)))
        answer = self.engine.call('read', on='sealed', chunk=chunk)
        content = bytes.fromhex(answer['hex'])
        at = chunk * CHUNK_BYTES
        wanted = frozen[at : at + CHUNK_BYTES].ljust(CHUNK_BYTES, b'\0')
        if content != wanted:
            raise Mismatch(
                f'chunk {chunk} is not as at the freeze; {list(self._last)}'
            )
        end = min(at + CHUNK_BYTES, len(frozen))
        self.version[at:end] = content[: end - at]
        self.engine.call('uploaded', on='sealed', chunk=chunk)

    def publish(self):
        self.freeze()
        while self.sealed[1]:
            self.upload()
        frozen, _ = self.sealed
        self.engine.call('publish', on='sealed')
        self.sealed = None
        if self.version[: len(frozen)] != frozen:
            raise Mismatch('the version is not the disk at its freeze')

    def commit(self):
        """COMMIT all that there is now."""
        if self.sealed is not None:
            self.publish()
        self.publish()
        if self.version != self.disk:
            raise Mismatch('the version is not the disk')

    def abandon(self):
        if self.sealed is not None:
            # What was read of it is not in any version.
            chunks = self.sealed[1]
            if len(chunks) == len(self.engine.call('chunks', on='sealed')):
                self.engine.call('abandon', on='sealed')
                self.sealed = None

    def restart(self):
        """The server ends, in order or not, and another one goes on."""
        if self.rng.random() < 0.5:
            self.engine.engine('stop')
        self.close()
        self.engine.process.kill()
        self.engine.start()
        self.path = self.engine.attach(
            self.base, size_bytes=len(self.disk), create=False
        )
        if self.sealed is not None:
            # Uploaded, not published: dirty again, as all of them are.
            self.sealed = None
        self._open()
        self.check()

    # Runs.

    def check(self):
        """Read all of it, by several ways."""
        size, fd = len(self.disk), self._fds['buffered']
        got = bytearray()
        while len(got) < size:
            some = os.pread(fd, 1 << 20, len(got))
            assert some, f'the file ends at {len(got)} of {size}'
            got += some
        self._expect('the whole', 0, size, bytes(got))
        assert os.pread(fd, 1, size) == b''

    def compare(self, scratch):
        """qemu-img compare with a plain file, holes and all."""
        scratch.write_bytes(self.disk)
        done = subprocess.run(
            ['qemu-img', 'compare', '-f', 'raw', '-F', 'raw', '-T', 'none']
            + [str(scratch), str(self.path)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise Mismatch(done.stdout + done.stderr)

    def run(self, operations, kinds):
        """So many operations.

        :param kinds: {method's name: weight}
        """
        names, weights = list(kinds), list(kinds.values())
        for _ in range(operations):
            name = self.rng.choices(names, weights)[0]
            self._last.append(name)
            self.done[name] += 1
            getattr(self, name)()
        self.check()


GUEST = {
    'read': 10,
    'read_direct': 10,
    'read_in_parts': 4,
    'read_mapped': 4,
    'write': 10,
    'write_direct': 10,
    'write_durably': 1,
    'copy': 2,
    'punch': 5,
    'zero': 5,
    'punch_past_the_end': 0.1,
    'sync': 1,
    'seek': 3,
    'refuse': 2,
    'reopen': 0.5,
}
HOST = {
    'grow': 0.5,
    'freeze': 1,
    'upload': 4,
    'publish': 0.7,
    'abandon': 0.2,
}
