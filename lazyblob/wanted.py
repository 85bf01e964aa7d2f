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
"""An object that a version needs: how it is read, proved, and made again.

Whatever answers, a store, another repository or a host's cache, is believed
only after the content has the digest that was asked for.

Threads: values; all of them.
"""

import dataclasses

from lazyblob import chunk
from lazyblob import digest
from lazyblob import exceptions
from lazyblob import manifest
from lazyblob.catalog import api
from lazyblob.chunk_store import base


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """One object.

    :ivar scope: of the blob's digests
    :ivar size_bytes: a chunk has exactly so many bytes, others at most
    """

    name: bytes
    kind: chunk.Kind
    scope: str
    size_bytes: int

    @property
    def object_bytes_max(self) -> int:
        """The longest that it can be in a store."""
        return chunk.object_bytes_max(self.size_bytes)

    @property
    def _key(self) -> bytes:
        keys = digest.keys(self.scope)
        return {
            chunk.Kind.CHUNK: keys.chunk,
            chunk.Kind.NODE: keys.node,
            chunk.Kind.DESCRIPTOR: keys.descriptor,
        }[self.kind]

    def read(self, store: base.ChunkStore) -> bytes:
        """The object as a store has it, not proved."""
        return store.get(self.name, self.object_bytes_max)

    def content_of(self, data: bytes) -> bytes:
        """The content of an object. :raises ChunkCorrupt: not this one"""
        found = chunk.unpack(
            data, self.name, self._key, self.kind, self.size_bytes
        )
        return self._sized(found)

    def proved(self, content: bytes) -> bytes:
        """A content as it is. :raises ChunkCorrupt: not this one"""
        if digest.of(content, self._key) != self.name:
            raise exceptions.ChunkCorrupt(
                f'"{self.name.hex()}": other content than its digest names'
            )
        return self._sized(content)

    def packed(self, content: bytes) -> tuple[bytes, digest.Buffer]:
        """The object of a content, in parts."""
        is_project = digest.keys(self.scope).is_project
        return chunk.packed(content, self.kind, is_project=is_project)

    def _sized(self, content: bytes) -> bytes:
        if self.kind is chunk.Kind.CHUNK and len(content) != self.size_bytes:
            raise exceptions.ChunkCorrupt(
                f'"{self.name.hex()}": holds {len(content)} bytes and not a '
                f'chunk of {self.size_bytes}'
            )
        return content


def descriptor(version: api.Version, scope: str) -> Wanted:
    """What a version's root names."""
    return Wanted(
        bytes.fromhex(version.root),
        chunk.Kind.DESCRIPTOR,
        scope,
        manifest.DESCRIPTOR_BYTES,
    )


def node(name: bytes, scope: str) -> Wanted:
    """A node of a manifest."""
    return Wanted(name, chunk.Kind.NODE, scope, manifest.NODE_BYTES_MAX)


def piece(name: bytes, scope: str, chunk_size_bytes: int) -> Wanted:
    """A chunk."""
    return Wanted(name, chunk.Kind.CHUNK, scope, chunk_size_bytes)
