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
"""What chunk stores over obstore share: keys, reading, errors.

obstore is the Rust ``object_store`` with Python bindings: retries, pools and
conditional puts are its business, and it lets go of the GIL. An object lies
under ``<first byte of its digest, hex>/<digest, hex>``.

Threads: obstore's stores may be used by all of them.
"""

import abc
import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import TypeVar

import obstore
import obstore.exceptions
import obstore.store

from lazyblob import chunk
from lazyblob import exceptions
from lazyblob.chunk_store import base

T = TypeVar('T')


def key(digest: bytes) -> str:
    name = digest.hex()
    return f'{name[:2]}/{name}'


def digest_of(path: str) -> bytes | None:
    """None: it is no key of ours."""
    try:
        digest = bytes.fromhex(path.rpartition('/')[2])
    except ValueError:
        return None
    return digest if key(digest) == path else None


def too_large(
    digest: bytes, size_bytes: int, size_bytes_max: int
) -> exceptions.ChunkCorrupt:
    return exceptions.ChunkCorrupt(
        f'"{digest.hex()}": object of {size_bytes} bytes or more where at '
        f'most {size_bytes_max} may be'
    )


class EmptyObject(exceptions.StoreError):
    """No byte of it can be read: there is none."""


class ObjectStore(base.ChunkStore):
    """Reading and listing; what writes and syncs is the subclass's."""

    def __init__(self, url: str) -> None:
        self.url = url

    @functools.cached_property
    def _inner(self) -> obstore.store.ObjectStore:
        return self._open()

    @abc.abstractmethod
    def _open(self) -> obstore.store.ObjectStore:
        """The obstore store, rooted where the prefixes lie."""

    def get(self, digest: bytes, size_bytes_max: int) -> bytes:
        return b''.join(self._pieces(digest, size_bytes_max))

    def get_parts(
        self, digest: bytes, size_bytes_max: int
    ) -> tuple[bytes, bytes]:
        pieces = self._pieces(digest, size_bytes_max)
        whole = memoryview(pieces[0] if len(pieces) == 1 else b''.join(pieces))
        head = bytes(whole[: chunk.HEADER_BYTES])
        return head, bytes(whole[chunk.HEADER_BYTES :])

    def _pieces(self, digest: bytes, size_bytes_max: int) -> list[bytes]:
        def read() -> list[bytes]:
            found = obstore.get(self._inner, key(digest))
            if found.meta['size'] > size_bytes_max:
                raise too_large(digest, found.meta['size'], size_bytes_max)
            # What it says of its size is only a word: stop when it is over.
            pieces, size_bytes = [], 0
            for piece in found.stream(min_chunk_size=size_bytes_max):
                size_bytes += len(piece)
                if size_bytes > size_bytes_max:
                    raise too_large(digest, size_bytes, size_bytes_max)
                pieces.append(piece)
            return pieces

        return self._call('read', digest, read)

    def has(self, digest: bytes) -> bool:
        def head() -> bool:
            found = obstore.get(
                self._inner,
                key(digest),
                options={'range': (0, chunk.HEADER_BYTES)},
            )
            return chunk.plausible_length(
                bytes(found.bytes()), found.meta['size']
            )

        try:
            return self._call('look for', digest, head)
        except (exceptions.NotFound, EmptyObject):
            return False

    def list(self) -> Iterator[tuple[bytes, int]]:
        for batch in obstore.list(self._inner):
            for found in batch:
                digest = digest_of(found['path'])
                if digest is not None:
                    yield digest, found['size']

    def delete(self, digest: bytes) -> None:
        def remove() -> None:
            obstore.delete(self._inner, key(digest))

        with contextlib.suppress(exceptions.NotFound):
            self._call('delete', digest, remove)

    def _call(self, verb: str, digest: bytes, operation: Callable[[], T]) -> T:
        what = f'could not {verb} "{digest.hex()}" in "{self.url}"'
        try:
            return operation()
        except FileNotFoundError as exc:
            raise exceptions.NotFound(f'{what}: it is not there') from exc
        except (
            obstore.exceptions.PermissionDeniedError,
            obstore.exceptions.UnauthenticatedError,
            PermissionError,
        ) as exc:
            raise exceptions.StoreDenied(
                f'{what}: permission denied; check who owns the store and '
                f'which user and group this runs as'
            ) from exc
        except (obstore.exceptions.BaseError, OSError) as exc:
            # The first line; what follows is a dump for debugging.
            reason = (str(exc).splitlines() or [type(exc).__name__])[0]
            if 'Permission denied' in str(exc):
                raise exceptions.StoreDenied(f'{what}: {reason}') from exc
            raise exceptions.StoreError(f'{what}: {reason}') from exc
