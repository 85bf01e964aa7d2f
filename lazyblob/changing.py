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
"""The manifest of a new version, out of its parent's and what has changed.

Only the paths to changed chunks are read and made anew; whatever they do not
touch is taken over by its digest, unread. So a COMMIT costs what it changes:
a leaf for each 256 neighbouring chunks, and above each leaf one node a level,
of which a disk of 128 MiB has none, one of 32 GiB one, one of 8 TiB two. The
form stays canonical (:mod:`.manifest`): the root is the one that a manifest
built from nothing would have.

Threads: :meth:`Builder.get` and :meth:`Builder.set` may be called by all of
them; two that need leaves which are not there yet read them in turn. The rest
is one thread's, after them.
"""

import threading
from collections.abc import Iterator

from lazyblob import digest
from lazyblob import manifest
from lazyblob import tree as trees

_EMPTY_TABLE = bytes(manifest.TABLE_BYTES)
#: Name of a changed node by its index in its level.
_Names = dict[int, bytes]


class Builder:
    """A manifest in the making: the leaves that were looked at, old and new.

    :param parent: None: the disk was all holes
    """

    def __init__(self, parent: trees.Tree | None = None) -> None:
        self._parent = parent
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._old: dict[int, bytes] = {}
        self._new: dict[int, bytearray] = {}

    def get(self, index: int) -> bytes | None:
        """What the parent has at an index; None is a hole.

        :raises StoreError: its manifest cannot be read
        """
        leaf = self._leaf(index >> manifest.FANOUT_BITS)
        at = (index & (manifest.FANOUT - 1)) * digest.SIZE_BYTES
        entry = leaf[at : at + digest.SIZE_BYTES]
        return None if entry == manifest.HOLE else entry

    def set(self, index: int, entry: bytes | None) -> None:
        """:param entry: the digest of the chunk; None is a hole

        :raises StoreError: the parent's manifest cannot be read
        """
        leaf_index = index >> manifest.FANOUT_BITS
        old = self._leaf(leaf_index)
        at = (index & (manifest.FANOUT - 1)) * digest.SIZE_BYTES
        with self._lock:
            leaf = self._new.get(leaf_index)
            if leaf is None:
                leaf = self._new[leaf_index] = bytearray(old)
            leaf[at : at + digest.SIZE_BYTES] = entry or manifest.HOLE

    def finish(
        self, size_bytes: int, chunk_size_bytes: int, keys: digest.Keys
    ) -> manifest.Encoded:
        """The new version; of its nodes only those that its parent has not.

        :param size_bytes: not less than the parent's
        :raises StoreError: the parent's manifest cannot be read
        """
        depth = manifest.depth_for(
            manifest.count_chunks(size_bytes, chunk_size_bytes)
        )
        nodes: list[tuple[bytes, bytes]] = []
        names: _Names = {}
        for index in sorted(self._new):
            table = bytes(self._new[index])
            if table != self._old[index]:
                names[index] = _name(0, table, keys, nodes)
        for level in range(1, depth):
            names = self._raise(level, names, keys, nodes)
        root = names.get(0)
        if root is None:
            root = manifest.HOLE
            if self._parent is not None:
                root = self._parent.descriptor.tree
        descriptor = manifest.Descriptor(
            size_bytes, chunk_size_bytes, root
        ).encode()
        return manifest.Encoded(
            digest.of(descriptor, keys.descriptor), descriptor, nodes
        )

    def entries(self) -> Iterator[bytes]:
        """The digests in the leaves that were set in."""
        for leaf in self._new.values():
            for at in range(0, manifest.TABLE_BYTES, digest.SIZE_BYTES):
                entry = bytes(leaf[at : at + digest.SIZE_BYTES])
                if entry != manifest.HOLE:
                    yield entry

    def _raise(
        self,
        level: int,
        below: _Names,
        keys: digest.Keys,
        nodes: list[tuple[bytes, bytes]],
    ) -> _Names:
        """The nodes of a level that changed with those below them."""
        parent = self._parent
        tables: dict[int, bytearray] = {}
        if parent is not None and parent.descriptor.depth == level:
            # The disk has grown: what was its root is a child here.
            below = {0: parent.descriptor.tree, **below}
        for index, name in below.items():
            above, slot = divmod(index, manifest.FANOUT)
            table = tables.get(above)
            if table is None:
                table = tables[above] = bytearray(self._table(level, above))
            at = slot * digest.SIZE_BYTES
            table[at : at + digest.SIZE_BYTES] = name
        return {
            index: _name(level, bytes(table), keys, nodes)
            for index, table in sorted(tables.items())
        }

    def _leaf(self, index: int) -> bytes:
        """The parent's."""
        with self._lock:
            found = self._old.get(index)
        if found is not None:
            return found
        with self._reading:
            found = self._old.get(index)
            if found is None:
                found = self._table(0, index)
                with self._lock:
                    self._old[index] = found
            return found

    def _table(self, level: int, index: int) -> bytes:
        """The parent's node at a place; a hole's is empty."""
        parent = self._parent
        if parent is None or parent.descriptor.depth <= level:
            return _EMPTY_TABLE
        return parent.node(level, index)


def _name(
    level: int,
    table: bytes,
    keys: digest.Keys,
    nodes: list[tuple[bytes, bytes]],
) -> bytes:
    """A table's name; its node is among the new ones then."""
    if table == _EMPTY_TABLE:
        return manifest.HOLE
    node = manifest.encode_node(level, table)
    name = digest.of(node, keys.node)
    nodes.append((name, node))
    return name
