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
"""Reading a version: any range, or all of it in order.

What is read is verified against its digest. Random reads keep the last few
chunks; :meth:`Reader.stream` fetches ahead in parallel, a bounded number of
chunks, and gives holes from one shared buffer of zeros.

Threads: :meth:`Reader.read` may be called by all of them; each stream is one
thread's.
"""

import collections
import concurrent.futures
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

from lazyblob import chunk
from lazyblob import exceptions
from lazyblob import tree

T = TypeVar('T')

_CACHED_CHUNKS_MAX = 4
_AHEAD_PER_THREAD = 2


class Reader:
    """One version, open.

    :param fetch_chunk: the content of a chunk by its digest, verified
    """

    def __init__(
        self,
        source: tree.Tree,
        fetch_chunk: Callable[[bytes, int], bytes],
        *,
        threads: int = 4,
    ) -> None:
        self.size_bytes = source.descriptor.size_bytes
        self.chunk_size_bytes = source.descriptor.chunk_size_bytes
        self._tree = source
        self._fetch_chunk = fetch_chunk
        self._threads = threads
        self._lock = threading.Lock()
        self._cache: collections.OrderedDict[bytes, bytes] = (
            collections.OrderedDict()
        )

    def read(self, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes; fewer only at the end of the disk.

        :raises StoreError: a chunk is damaged or cannot be read
        """
        offset, end = self._range(offset, length)
        return b''.join(
            self._chunk(index)[start:stop]
            for index, start, stop in self._pieces(offset, end)
        )

    def stream(
        self, offset: int = 0, length: int | None = None
    ) -> Iterator[bytes]:
        """The bytes of a range, in pieces of a chunk at most.

        Closing the iterator early ends what is under way.
        """
        for piece, _is_hole in self.pieces(offset, length):
            yield piece

    def pieces(
        self, offset: int = 0, length: int | None = None
    ) -> Iterator[tuple[bytes, bool]]:
        """Like :meth:`stream`; each piece says whether it is a hole."""
        offset, end = self._range(offset, length)
        zeros = chunk.zeros(self.chunk_size_bytes)
        wanted = (
            ((start, stop), self._tree.get(index))
            for index, start, stop in self._pieces(offset, end)
        )
        for (start, stop), found in self._ahead(wanted):
            data = zeros if found is None else found
            if stop - start != len(data):
                data = data[start:stop]
            yield data, found is None

    def data(self) -> Iterator[tuple[int, bytes]]:
        """Offset and content of the chunks that are no holes, ascending.

        Holes cost nothing, however large they are.
        """
        size = self.chunk_size_bytes
        for index, found in self._ahead(tree.added(None, self._tree, -1)):
            if found is not None:
                yield index * size, found[: self.size_bytes - index * size]

    def _ahead(
        self, wanted: Iterator[tuple[T, bytes | None]]
    ) -> Iterator[tuple[T, bytes | None]]:
        """Chunks by their digests; the next few are under way."""
        waiting: collections.deque[
            tuple[T, concurrent.futures.Future[bytes] | None]
        ] = collections.deque()
        pool = concurrent.futures.ThreadPoolExecutor(
            self._threads, thread_name_prefix='read-ahead'
        )
        try:
            while True:
                while len(waiting) < self._threads * _AHEAD_PER_THREAD:
                    item = next(wanted, None)
                    if item is None:
                        break
                    key, name = item
                    future = name and pool.submit(self._fetch, name)
                    waiting.append((key, future or None))
                if not waiting:
                    return
                key, pending = waiting.popleft()
                yield key, pending.result() if pending else None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def close(self) -> None:
        with self._lock:
            self._cache.clear()

    def _range(self, offset: int, length: int | None) -> tuple[int, int]:
        if offset < 0 or (length is not None and length < 0):
            raise exceptions.InvalidConfiguration(
                f'range {offset}+{length} is negative'
            )
        end = self.size_bytes
        if length is not None:
            end = min(end, offset + length)
        return offset, end

    def _pieces(self, offset: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Chunk index, first byte and end within it."""
        size = self.chunk_size_bytes
        while offset < end:
            index, start = divmod(offset, size)
            stop = min(size, start + end - offset)
            yield index, start, stop
            offset += stop - start

    def _chunk(self, index: int) -> bytes:
        name = self._tree.get(index)
        if name is None:
            return chunk.zeros(self.chunk_size_bytes)
        with self._lock:
            data = self._cache.get(name)
            if data is not None:
                self._cache.move_to_end(name)
                return data
        data = self._fetch(name)
        with self._lock:
            self._cache[name] = data
            while len(self._cache) > _CACHED_CHUNKS_MAX:
                self._cache.popitem(last=False)
        return data

    def _fetch(self, name: bytes) -> bytes:
        return self._fetch_chunk(name, self.chunk_size_bytes)
