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
"""The border between lazyblob's errors and Glance's.

Glance turns each class into an answer to the user, so the class decides what
the user sees: an absent conductor is 503, a full store 413, a missing blob
204 for a download and success for a deletion.
"""

import contextlib
from collections.abc import Generator, Iterator
from typing import Any

from glance_store import exceptions
from lazyblob import exceptions as lazy

# Glance answers TimeoutError with 503 where RemoteServiceUnavailable alone
# would be 500: uploads and deletions. Older glance_store has no such class.
_TimeoutError: Any = getattr(
    exceptions, 'TimeoutError', exceptions.GlanceStoreException
)


class Unavailable(exceptions.RemoteServiceUnavailable, _TimeoutError):
    """The catalog or the chunk store does not answer now."""


_CLASSES: tuple[tuple[type[Exception], Any], ...] = (
    (lazy.NotFound, exceptions.NotFound),
    (lazy.BadLocation, exceptions.BadStoreUri),
    (lazy.SizeMismatch, exceptions.Invalid),
    (lazy.Forbidden, exceptions.Forbidden),
    (lazy.CatalogUnavailable, Unavailable),
    (lazy.TemporaryStoreError, Unavailable),
    (lazy.StoreFull, exceptions.StorageFull),
    (lazy.StoreDenied, exceptions.StorageWriteDenied),
    (lazy.InvalidConfiguration, exceptions.GlanceStoreException),
)


def translate(error: lazy.LazyBlobError) -> Exception:
    """The exception of glance_store that says the same."""
    for ours, theirs in _CLASSES:
        if isinstance(error, ours):
            same: Exception = theirs(message=str(error))
            return same
    return exceptions.GlanceStoreException(message=str(error))


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Raise glance_store's exceptions instead of lazyblob's."""
    try:
        yield
    except lazy.LazyBlobError as error:
        raise translate(error) from error


def translated_pieces(
    pieces: Iterator[bytes],
) -> Generator[bytes, None, None]:
    """The same pieces; errors on the way are translated.

    Closing it also closes the pieces' own iterator, which then reads no
    further ahead.
    """
    with translated():
        yield from pieces
