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
"""Streaming an image in: read, hash, compress and put, in bounded memory.

The caller's thread cuts the source into chunks; a few workers hash, compress
and put them (blake3, zstandard and the store let go of the GIL). Of a file
they also read them, each into a buffer of its own; a stream is read by the
caller's thread. It waits while as many chunks as there may be are under way,
so memory does not depend on the image: chunks under way, and 32 bytes for
each chunk of the manifest.

Threads: one writer is one thread's.
"""

import concurrent.futures
import errno
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

from lazyblob import commit
from lazyblob import digest
from lazyblob import exceptions

_QUEUED_CHUNKS = 4
_READ_BYTES = 1 << 20
_EXTENT_BYTES = 32 << 20
Progress = Callable[[int], None]


class Hole:
    """So many zeros, without the bytes."""

    __slots__ = ('size_bytes',)

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes


class Extent:
    """So many bytes of a file that nobody has read yet."""

    __slots__ = ('descriptor', 'offset', 'size_bytes')

    def __init__(self, descriptor: int, offset: int, size_bytes: int) -> None:
        self.descriptor = descriptor
        self.offset = offset
        self.size_bytes = size_bytes

    def read_into(self, target: digest.Buffer) -> None:
        """:raises SizeMismatch: the file has become shorter"""
        view = memoryview(target)
        offset = self.offset
        while view:
            count = os.preadv(self.descriptor, [view], offset)
            if not count:
                raise exceptions.SizeMismatch(
                    f'file ended at {offset} bytes while it was read'
                )
            offset += count
            view = view[count:]


Piece = digest.Buffer | Hole | Extent
Stream = Iterable[Piece]


def read_file(source: BinaryIO) -> Iterator[Piece]:
    """The bytes of a file; holes of a regular one are not read.

    The file stays open until the import is over.
    """
    descriptor = source.fileno()
    end = os.fstat(descriptor).st_size
    offset = 0
    try:
        while offset < end:
            data = _seek_data(descriptor, offset, end)
            if data > offset:
                yield Hole(data - offset)
                offset = data
                continue
            hole = os.lseek(descriptor, offset, os.SEEK_HOLE)
            # In parts: progress is told by them.
            while offset < hole:
                size_bytes = min(_EXTENT_BYTES, hole - offset)
                yield Extent(descriptor, offset, size_bytes)
                offset += size_bytes
    except OSError as exc:
        if exc.errno not in (errno.ESPIPE, errno.EINVAL) or offset:
            raise
        yield from read_pipe(source)


def read_pipe(source: BinaryIO) -> Iterator[bytes]:
    while piece := source.read(_READ_BYTES):
        yield piece


def _seek_data(descriptor: int, offset: int, end: int) -> int:
    try:
        return os.lseek(descriptor, offset, os.SEEK_DATA)
    except OSError as exc:
        if exc.errno == errno.ENXIO:
            return end
        raise


class _Bounded:
    """A pool that takes no more work than it may hold, and fails early."""

    def __init__(self, threads: int) -> None:
        self._room = threading.BoundedSemaphore(threads + _QUEUED_CHUNKS)
        self._pool = concurrent.futures.ThreadPoolExecutor(
            threads, thread_name_prefix='import'
        )
        self._failure: BaseException | None = None

    def submit(self, work: Callable[[], object]) -> None:
        self._room.acquire()
        if self._failure is not None:
            self._room.release()
            raise self._failure
        future = self._pool.submit(work)
        future.add_done_callback(self._done)

    def finish(self) -> None:
        self._pool.shutdown(wait=True)
        if self._failure is not None:
            raise self._failure

    def cancel(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _done(self, future: concurrent.futures.Future[object]) -> None:
        if not future.cancelled() and self._failure is None:
            self._failure = future.exception()
        self._room.release()


def write(
    stream: Stream,
    target: commit.Commit,
    *,
    threads: int,
    progress: Progress | None = None,
) -> int:
    """Put a stream's chunks.

    :param progress: called with the bytes read so far
    :returns: how many bytes the stream had
    """
    workers = _Bounded(threads)
    cutter = _Cutter(target, workers)
    try:
        for piece in stream:
            if isinstance(piece, Hole):
                cutter.skip(piece.size_bytes)
            elif isinstance(piece, Extent):
                cutter.cut(piece)
            else:
                cutter.take(piece)
            if progress is not None:
                progress(cutter.size_bytes)
        size_bytes = cutter.size_bytes
        cutter.pad()
        workers.finish()
    except BaseException:
        workers.cancel()
        raise
    return size_bytes


class _Cutter:
    """Cuts pieces of any length into whole chunks."""

    def __init__(self, target: commit.Commit, workers: _Bounded) -> None:
        self.size_bytes = 0
        self._target = target
        self._workers = workers
        self._chunk = bytearray()
        self._index = 0
        # One a worker.
        self._buffers = threading.local()

    def take(self, piece: digest.Buffer) -> None:
        size = self._target.chunk_size_bytes
        is_fixed = isinstance(piece, bytes)
        view = memoryview(piece).cast('B')
        self.size_bytes += len(view)
        while view:
            if not self._chunk and len(view) >= size and is_fixed:
                # Nobody changes it: no need of a copy.
                self._submit(view[:size])
                view = view[size:]
                continue
            part = view[: size - len(self._chunk)]
            self._chunk += part
            view = view[len(part) :]
            if len(self._chunk) == size:
                self._put()

    def cut(self, extent: Extent) -> None:
        """Whole chunks are read by the workers, what is at its edges here."""
        size = self._target.chunk_size_bytes
        descriptor, offset = extent.descriptor, extent.offset
        end = offset + extent.size_bytes
        while offset < end:
            pending = len(self._chunk)
            part = min(size - pending, end - offset)
            piece = Extent(descriptor, offset, part)
            if part == size:
                self.size_bytes += size
                self._submit(piece)
            else:
                data = bytearray(part)
                piece.read_into(data)
                self.take(data)
            offset += part

    def skip(self, size_bytes: int) -> None:
        size = self._target.chunk_size_bytes
        self.size_bytes += size_bytes
        if self._chunk:
            part = min(size_bytes, size - len(self._chunk))
            self._chunk += bytes(part)
            size_bytes -= part
            if len(self._chunk) == size:
                self._put()
        count, rest = divmod(size_bytes, size)
        self._index += count
        if count:
            self._target.skip_hole(count * size)
        if rest:
            self._chunk += bytes(rest)

    def pad(self) -> None:
        if self._chunk:
            missing = self._target.chunk_size_bytes - len(self._chunk)
            self._chunk += bytes(missing)
            self._put()

    def _put(self) -> None:
        data, self._chunk = self._chunk, bytearray()
        self._submit(data)

    def _submit(self, data: digest.Buffer | Extent) -> None:
        index = self._index
        self._index += 1
        self._workers.submit(lambda: self._work(index, data))

    def _work(self, index: int, data: digest.Buffer | Extent) -> None:
        if isinstance(data, Extent):
            buffer = getattr(self._buffers, 'buffer', None)
            if buffer is None:
                buffer = bytearray(self._target.chunk_size_bytes)
                self._buffers.buffer = buffer
            data.read_into(buffer)
            data = buffer
        self._target.put(index, data)
