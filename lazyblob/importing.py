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

The caller's thread reads the source and cuts it into chunks; a few workers
hash, compress and put them (blake3, zstandard and the store let go of the
GIL). The reader waits while as many chunks as there may be are under way, so
memory does not depend on the image: chunks under way, and 32 bytes for each
chunk of the manifest.

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

_QUEUED_PER_THREAD = 2
_READ_BYTES = 1 << 20
# Not worth a seek: shorter holes are read as zeros.
Progress = Callable[[int], None]


class Hole:
    """So many zeros, without the bytes."""

    __slots__ = ('size_bytes',)

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes


Piece = digest.Buffer | Hole
Stream = Iterable[Piece]


def read_file(source: BinaryIO) -> Iterator[Piece]:
    """The bytes of a file; holes of a regular one are not read."""
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
            while offset < hole:
                piece = os.pread(
                    descriptor, min(_READ_BYTES, hole - offset), offset
                )
                if not piece:
                    return
                yield piece
                offset += len(piece)
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
        self._room = threading.BoundedSemaphore(
            threads * (1 + _QUEUED_PER_THREAD)
        )
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

    def take(self, piece: digest.Buffer) -> None:
        size = self._target.chunk_size_bytes
        view = memoryview(piece).cast('B')
        self.size_bytes += len(view)
        while view:
            part = view[: size - len(self._chunk)]
            self._chunk += part
            view = view[len(part) :]
            if len(self._chunk) == size:
                self._put()

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
        index, data = self._index, self._chunk
        self._chunk = bytearray()
        self._index += 1
        self._workers.submit(lambda: self._target.put(index, data))
