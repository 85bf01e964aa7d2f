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
"""Manifests read from a store: lookups, whole manifests, differences.

A node is fetched when it is needed and kept in a small cache; what is equal
in two trees is never fetched to compare them.

Threads: a :class:`Tree` may be used by all of them; two may fetch one node
at once, which costs a request and nothing else.
"""

import collections
import concurrent.futures
import dataclasses
import threading
from collections.abc import Callable, Iterator

from lazyblob import digest
from lazyblob import exceptions
from lazyblob import manifest

_CACHED_NODES_MAX = 64
# Marks the nodes by which a shallower tree is as deep as another one.
_LIFTED = b'lifted'.ljust(32, b'\xff')


@dataclasses.dataclass(frozen=True)
class Difference:
    """A chunk that differs between two versions; None is a hole."""

    index: int
    before: bytes | None
    after: bytes | None


class Tree:
    """The tree of one version in a store.

    :param fetch_node: the content of a node by its digest, verified
    """

    def __init__(
        self,
        descriptor: manifest.Descriptor,
        fetch_node: Callable[[bytes], bytes],
    ) -> None:
        self.descriptor = descriptor
        self._fetch_node = fetch_node
        self._lock = threading.Lock()
        self._cache: collections.OrderedDict[tuple[int, int], bytes] = (
            collections.OrderedDict()
        )

    def table(self, name: bytes, level: int, first: int) -> bytes:
        """The 256 digests of a node whose first chunk index is ``first``.

        :raises ChunkCorrupt: the node is not what the tree's shape asks for
        :raises NotFound: the store has lost it
        """
        key = (level, first)
        with self._lock:
            found = self._cache.get(key)
            if found is not None:
                self._cache.move_to_end(key)
                return found
        content = self._fetch_node(name)
        slot_count = manifest.slots_inside(
            self.descriptor.chunk_count, level, first
        )
        try:
            found = manifest.decode_node(content, level, slot_count)
        except exceptions.ChunkCorrupt as exc:
            raise exceptions.ChunkCorrupt(f'"{name.hex()}": {exc}') from exc
        with self._lock:
            self._cache[key] = found
            while len(self._cache) > _CACHED_NODES_MAX:
                self._cache.popitem(last=False)
        return found

    def get(self, index: int) -> bytes | None:
        """The digest of the chunk at an index; None is a hole."""
        table = self.node(0, index >> manifest.FANOUT_BITS)
        at = (index & (manifest.FANOUT - 1)) * 32
        name = table[at : at + 32]
        return None if name == manifest.HOLE else name

    def node(self, level: int, index: int) -> bytes:
        """The table of a level's n-th node; a hole's is empty.

        :raises ChunkCorrupt: a node is not what the tree's shape asks for
        :raises NotFound: the store has lost one
        """
        bits = manifest.FANOUT_BITS
        first = index << (bits * (level + 1))
        name = self.descriptor.tree
        if first >= self.descriptor.chunk_count:
            name = manifest.HOLE
        for above in range(self.descriptor.depth - 1, level, -1):
            shift = bits * (above + 1)
            table = self.entries(name, above, first >> shift << shift)
            at = ((first >> (shift - bits)) & (manifest.FANOUT - 1)) * 32
            name = table[at : at + 32]
        return self.entries(name, level, first)

    def load(self, threads: int = 4) -> manifest.Manifest:
        """The whole manifest; nodes of one level are fetched in parallel."""
        descriptor = self.descriptor
        names: dict[int, bytes] = {}
        if descriptor.tree != manifest.HOLE:
            names[0] = descriptor.tree
        leaves: dict[int, bytes] = {}
        with concurrent.futures.ThreadPoolExecutor(
            threads, thread_name_prefix='manifest'
        ) as pool:
            for level in reversed(range(descriptor.depth)):
                shift = manifest.FANOUT_BITS * (level + 1)
                tables = pool.map(
                    self.table,
                    names.values(),
                    [level] * len(names),
                    [first << shift for first in names],
                )
                by_index = dict(zip(names, tables, strict=True))
                if level == 0:
                    leaves = by_index
                    break
                names = {
                    index * manifest.FANOUT + slot: table[
                        slot * 32 : slot * 32 + 32
                    ]
                    for index, table in by_index.items()
                    for slot in range(manifest.FANOUT)
                    if table[slot * 32 : slot * 32 + 32] != manifest.HOLE
                }
        return manifest.Manifest(
            descriptor.size_bytes, descriptor.chunk_size_bytes, leaves, names
        )

    def entries(self, name: bytes, level: int, first: int) -> bytes:
        """Like :meth:`table`, also for a hole and for lifted nodes."""
        if name == manifest.HOLE:
            return bytes(manifest.TABLE_BYTES)
        if name == _LIFTED:
            below = self.lifted(level)
            return below + bytes(manifest.TABLE_BYTES - len(below))
        return self.table(name, level, first)

    def lifted(self, depth: int) -> bytes:
        """The name of this tree's root once it is ``depth`` levels deep."""
        if self.descriptor.tree == manifest.HOLE:
            return manifest.HOLE
        if depth == self.descriptor.depth:
            return self.descriptor.tree
        return _LIFTED


def of(made: manifest.Manifest, keys: digest.Keys) -> Tree:
    """The tree of a manifest that is in memory."""
    encoded = made.encode(keys)
    descriptor = manifest.Descriptor.decode(encoded.descriptor)
    return Tree(descriptor, dict(encoded.nodes).__getitem__)


def diff(before: Tree, after: Tree) -> Iterator[Difference]:
    """The chunks that differ, ascending.

    :raises Conflict: the chunk sizes differ
    """
    if before.descriptor.chunk_size_bytes != after.descriptor.chunk_size_bytes:
        raise exceptions.Conflict(
            f'chunk sizes differ: '
            f'{before.descriptor.chunk_size_bytes} and '
            f'{after.descriptor.chunk_size_bytes} bytes; compare exports'
        )
    depth = max(before.descriptor.depth, after.descriptor.depth)
    yield from _diff(
        before,
        after,
        (before.lifted(depth), after.lifted(depth)),
        depth - 1,
        0,
    )


def _diff(
    before: Tree,
    after: Tree,
    names: tuple[bytes, bytes],
    level: int,
    first: int,
) -> Iterator[Difference]:
    if names[0] == names[1] and names[0] != _LIFTED:
        return
    if level < 0:
        old, new = (None if n == manifest.HOLE else n for n in names)
        yield Difference(first, old, new)
        return
    old_table = before.entries(names[0], level, first)
    new_table = after.entries(names[1], level, first)
    for slot in range(manifest.FANOUT):
        old_name = old_table[slot * 32 : slot * 32 + 32]
        new_name = new_table[slot * 32 : slot * 32 + 32]
        if old_name != new_name:
            yield from _diff(
                before,
                after,
                (old_name, new_name),
                level - 1,
                first + (slot << (manifest.FANOUT_BITS * level)),
            )


def added(
    before: Tree | None, after: Tree, level: int
) -> Iterator[tuple[int, bytes]]:
    """What a tree has and another one has not at the same place, ascending.

    Nodes of one level, or chunks, by the index of their first chunk. What is
    below a node that both have is passed over without being read.

    :param before: of the same chunk size; None: one of holes only
    :param level: of the nodes; -1: the chunks
    """
    depth = after.descriptor.depth
    old = manifest.HOLE
    if before is not None:
        depth = max(depth, before.descriptor.depth)
        old = before.lifted(depth)
    names = (old, after.lifted(depth))
    yield from _added(before or after, after, names, depth - 1, 0, level)


def _added(
    before: Tree,
    after: Tree,
    names: tuple[bytes, bytes],
    level: int,
    first: int,
    wanted: int,
) -> Iterator[tuple[int, bytes]]:
    old, new = names
    if new == manifest.HOLE or (old == new and new != _LIFTED):
        return
    if level == wanted:
        # A lifted one is no node: the tree is not as deep.
        if new != _LIFTED:
            yield first, new
        return
    old_table = before.entries(old, level, first)
    new_table = after.entries(new, level, first)
    for at in range(0, manifest.TABLE_BYTES, digest.SIZE_BYTES):
        pair = old_table[at : at + 32], new_table[at : at + 32]
        if pair[0] != pair[1]:
            slot = at // digest.SIZE_BYTES
            below = first + (slot << (manifest.FANOUT_BITS * level))
            yield from _added(before, after, pair, level - 1, below, wanted)
