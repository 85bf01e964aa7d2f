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
"""The bytes of one upload on their way from Glance into the repository.

The repository iterates over an :class:`Upload`; everything that Glance wants
to know about the bytes is learned as they pass: how many there are, whether
that is what the client announced, md5, multihash, signature.

Both hashes are computed beside the pipeline, each in a thread of its own (a
hash of large buffers does not hold the GIL), at most ``WAITING_BUFFERS_MAX``
buffers behind it.

What the reader raises is kept in ``failure``, so that the very same
exception can go up whatever the repository made of it.
"""

import collections
from collections.abc import Iterator
from concurrent import futures
from typing import Any

from glance_store import exceptions
from glance_store.common import utils

WAITING_BUFFERS_MAX = 4


class Hashing:
    """Digests of a stream, computed beside whoever reads it."""

    def __init__(self, algorithms: list[str]) -> None:
        self._hashers = [
            utils.get_hasher(algorithm, False) for algorithm in algorithms
        ]
        self._threads = [
            futures.ThreadPoolExecutor(1, f'blob-hash-{algorithm}')
            for algorithm in algorithms
        ]
        self._waiting: collections.deque[list[futures.Future[None]]] = (
            collections.deque()
        )

    def update(self, data: bytes) -> None:
        """Add bytes; waits only when the hashes are far behind."""
        if len(self._waiting) >= WAITING_BUFFERS_MAX:
            self._settle()
        self._waiting.append(
            [
                thread.submit(hasher.update, data)
                for thread, hasher in zip(
                    self._threads, self._hashers, strict=True
                )
            ]
        )

    def hexdigests(self) -> list[str]:
        """The digests of all that was added."""
        while self._waiting:
            self._settle()
        return [hasher.hexdigest() for hasher in self._hashers]

    def _settle(self) -> None:
        for hashed in self._waiting.popleft():
            hashed.result()

    def close(self) -> None:
        """End the threads."""
        for thread in self._threads:
            thread.shutdown(cancel_futures=True)


class Upload:
    """An iterable, to be iterated over once.

    :param image_file: an iterable of bytes, or a file to read
    :param size_bytes: what the client announced; 0: nothing
    :param verifier: gets every buffer, if it is not None
    :param read_bytes: size of a read, if it is a file
    :ivar received_bytes: how many have passed
    :ivar failure: what ended it before its end; None otherwise
    :ivar is_complete: whether all bytes passed, as many as were announced
    """

    def __init__(
        self,
        image_file: Any,
        size_bytes: int,
        hashing: Hashing,
        verifier: Any,
        read_bytes: int,
    ) -> None:
        self.received_bytes = 0
        self.failure: BaseException | None = None
        self.is_complete = False
        self._image_file = image_file
        self._size_bytes = size_bytes or 0
        self._hashing = hashing
        self._verifier = verifier
        self._read_bytes = read_bytes

    def __iter__(self) -> Iterator[bytes]:
        """:raises Invalid: there are more or fewer bytes than announced"""
        try:
            for data in utils.chunkreadable(
                self._image_file, self._read_bytes
            ):
                self.received_bytes += len(data)
                if 0 < self._size_bytes < self.received_bytes:
                    raise self._wrong_size('at least ')
                self._hashing.update(data)
                if self._verifier:
                    self._verifier.update(data)
                yield data
            if self._size_bytes and self._size_bytes != self.received_bytes:
                raise self._wrong_size()
            self.is_complete = True
        except GeneratorExit:
            raise
        except BaseException as error:
            self.failure = error
            raise

    def _wrong_size(self, prefix: str = '') -> Exception:
        return exceptions.Invalid(
            message=f'{self._size_bytes} bytes were announced and '
            f'{prefix}{self.received_bytes} came; announce the true size, '
            f'or none'
        )
