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
"""What a fault hits: which ranges of which versions cannot be read.

A survey (:mod:`lazyblob.survey`) meets each object once, through whichever
version reaches it first. Only if something is wrong are the manifests walked
once more, each version for itself, to say all that it hits. A subtree in
which nothing was hit is passed over from then on, so that this costs the
distinct nodes, and the damaged ones for each version.

Memory: nothing beyond the survey's inventory and some tables.

Threads: one.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterator

from lazyblob import chunk
from lazyblob import exceptions
from lazyblob import inventory
from lazyblob import manifest
from lazyblob import wanted
from lazyblob.catalog import api

_TABLES_MAX = 256


@dataclasses.dataclass(frozen=True, slots=True)
class Fault:
    """An object that is damaged or missing.

    :ivar first: blob id and version that it was found through
    """

    wanted: wanted.Wanted
    reason: str
    is_missing: bool
    first: tuple[str, int]


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """A range of a version that cannot be read.

    :ivar offset: of the first byte
    :ivar length_bytes: to the end of the disk at most
    :ivar kind: ``chunk``, ``node`` or ``descriptor``
    """

    blob_id: str
    version: int
    offset: int
    length_bytes: int
    kind: str
    digest: str
    reason: str


def fault(
    asked: wanted.Wanted,
    exc: exceptions.LazyBlobError,
    first: tuple[str, int],
) -> Fault:
    """What a store's error says of an object."""
    is_missing = isinstance(exc, exceptions.NotFound)
    # The digest is told beside it: millions of reasons share a few texts.
    reason = str(exc).removeprefix(f'"{asked.name.hex()}": ')
    if is_missing:
        reason = 'it is not there'
    return Fault(asked, reason, is_missing, first)


class Hits:
    """Finds what faults hit.

    :param faults: by digest; what is found wrong on the way is added
    :param seen: takes marks of nodes below which nothing was hit
    :param clean: that mark
    :param fetch: the content of a descriptor or node, proved
    """

    def __init__(
        self,
        faults: dict[bytes, Fault],
        seen: inventory.Inventory,
        clean: int,
        fetch: Callable[[wanted.Wanted], bytes],
    ) -> None:
        self._faults = faults
        self._seen = seen
        self._clean = clean
        self._fetch = fetch
        self._tables: collections.OrderedDict[tuple[bytes, int], bytes] = (
            collections.OrderedDict()
        )

    def of(self, version: api.Version, scope: str) -> Iterator[Problem]:
        """Those of one version, ascending."""
        self._version, self._scope = version, scope
        root = wanted.descriptor(version, scope)
        try:
            if root.name in self._faults:
                raise exceptions.ChunkCorrupt('')
            found = manifest.Descriptor.decode(self._fetch(root))
        except (exceptions.ChunkCorrupt, exceptions.NotFound) as exc:
            self._note(root, exc)
            yield self._problem(root.name, 0, version.size_bytes)
            return
        self._descriptor = found
        if found.tree != manifest.HOLE:
            yield from self._below(found.tree, found.depth - 1, 0)

    def _below(self, name: bytes, level: int, first: int) -> Iterator[Problem]:
        """:param level: of the node; -1: it is a chunk"""
        if name in self._faults:
            yield self._hit(name, level, first)
            return
        if level < 0 or self._seen.marks(name) & self._clean:
            return
        try:
            table = self._table(name, level, first)
        except (exceptions.ChunkCorrupt, exceptions.NotFound) as exc:
            self._note(wanted.node(name, self._scope), exc)
            yield self._hit(name, level, first)
            return
        is_hit = False
        for slot in range(manifest.FANOUT):
            entry = table[slot * 32 : slot * 32 + 32]
            if entry != manifest.HOLE:
                start = first + (slot << (manifest.FANOUT_BITS * level))
                for problem in self._below(entry, level - 1, start):
                    is_hit = True
                    yield problem
        if not is_hit:
            self._seen.mark(name, self._clean)

    def _table(self, name: bytes, level: int, first: int) -> bytes:
        slots = manifest.slots_inside(
            self._descriptor.chunk_count, level, first
        )
        found = self._tables.get((name, slots))
        if found is None:
            content = self._fetch(wanted.node(name, self._scope))
            found = manifest.decode_node(content, level, slots)
            self._tables[name, slots] = found
            if len(self._tables) > _TABLES_MAX:
                self._tables.popitem(last=False)
        return found

    def _note(
        self, asked: wanted.Wanted, exc: exceptions.LazyBlobError
    ) -> None:
        first = self._version.blob_id, self._version.number
        self._faults.setdefault(asked.name, fault(asked, exc, first))

    def _hit(self, name: bytes, level: int, first: int) -> Problem:
        size = self._descriptor.chunk_size_bytes
        span = size << (manifest.FANOUT_BITS * (level + 1))
        start = first * size
        return self._problem(
            name, start, min(start + span, self._descriptor.size_bytes)
        )

    def _problem(self, name: bytes, start: int, end: int) -> Problem:
        found = self._faults[name]
        return Problem(
            self._version.blob_id,
            self._version.number,
            start,
            end - start,
            kind_name(found.wanted.kind),
            name.hex(),
            found.reason,
        )


def kind_name(kind: chunk.Kind) -> str:
    """``chunk``, ``node`` or ``descriptor``."""
    return kind.name.lower()
