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
"""What every chunk store promises.

Objects are immutable and named by digest, so a put may be repeated by
anyone. A store knows of its objects no more than the header that each opens
with (:func:`lazyblob.chunk.plausible_length`): what is shorter than its
header says counts as absent, so that a file which a loss of power cut short
is written again instead of believed.

Crash: a put that was cut off leaves the whole object or none. What was put
survives loss of power after :meth:`ChunkStore.sync`, not before.

Lies: what a store answers is not believed. Whoever asks says how much he can
take (:func:`lazyblob.chunk.object_bytes_max`), and no more is read, whatever
the store says that it is.

Threads: one instance serves them all.
"""

import abc
from collections.abc import Iterable, Iterator

from lazyblob import chunk
from lazyblob import digest as digests


class ChunkStore(abc.ABC):
    """Immutable objects by digest (32 bytes).

    :raises TemporaryStoreError: by every operation: it may work later
    :raises StoreDenied: by every operation: rights are missing
    :raises StoreError: by every operation: anything else
    """

    url: str
    #: Each call is a journey: who uses it has more of them under way at once,
    #: and does not ask what a put will answer anyway.
    is_remote: bool = False

    @abc.abstractmethod
    def initialise(self) -> None:
        """Make what objects are put into; repeating is harmless."""

    @abc.abstractmethod
    def put(self, digest: bytes, *parts: digests.Buffer) -> bool:
        """Store an object, whole or not at all; repeating is harmless.

        Its parts are the caller's again when this returns. An object that is
        there already with a plausible length stays.

        :returns: whether it was stored; False: it was there already, perhaps
            by an attempt of this very put whose answer was lost
        :raises StoreFull: the store has no room
        """

    @abc.abstractmethod
    def replace(self, digest: bytes, *parts: digests.Buffer) -> None:
        """Store an object in the place of one that is known to be bad.

        Readers find the one or the other, whole. It may be absent, too.

        :raises StoreFull: the store has no room
        """

    @abc.abstractmethod
    def get(self, digest: bytes, size_bytes_max: int) -> bytes:
        """The whole object.

        :raises NotFound: it is confirmed absent
        :raises ChunkCorrupt: it is larger than ``size_bytes_max``
        """

    def get_parts(
        self, digest: bytes, size_bytes_max: int
    ) -> tuple[bytes, bytes]:
        """As :meth:`get`, its header and what follows apart.

        For whoever unpacks it: a store that can read them apart saves him
        the copy of a chunk that does not compress.
        """
        data = self.get(digest, size_bytes_max)
        return data[: chunk.HEADER_BYTES], data[chunk.HEADER_BYTES :]

    @abc.abstractmethod
    def has(self, digest: bytes) -> bool:
        """Whether it is present with a plausible length."""

    @abc.abstractmethod
    def sync(self, digests: Iterable[bytes]) -> None:
        """Make objects that were put *or found* survive power loss."""

    @abc.abstractmethod
    def list(self) -> Iterator[tuple[bytes, int]]:
        """Every digest with its stored size in bytes, in no order."""

    @abc.abstractmethod
    def delete(self, digest: bytes) -> None:
        """Only the collector's; absent is no error."""

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Let go of what is held open; the store is not used after it."""
