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
"""Manifests: which chunk stands at which index of a version.

A Merkle radix tree of fan-out 256 (FORMAT.rst, "Manifest"). Its form is
canonical: equal content and size give equal nodes and an equal root, so the
tree of a version is a pure function of its leaves. That is why comparing two
versions may skip whatever has one digest.

:class:`Manifest` is a value in memory, immutable, shared freely between
threads: 8 KiB for every 256 chunks that are not all holes. :mod:`.tree`
reads the same tree piece by piece from a store, :mod:`.changing` makes the
next version's.
"""

import dataclasses
import struct
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import blake3

from lazyblob import chunk
from lazyblob import digest
from lazyblob import exceptions

FORMAT = 1
FANOUT = 256
FANOUT_BITS = 8
HOLE = bytes(digest.SIZE_BYTES)
TABLE_BYTES = FANOUT * digest.SIZE_BYTES
_EMPTY_TABLE = bytes(TABLE_BYTES)
_NODE_HEADER_BYTES = 40
NODE_BYTES_MAX = _NODE_HEADER_BYTES + TABLE_BYTES
DEPTH_MAX = 7
_DESCRIPTOR = struct.Struct('<IIQB15s32s')
DESCRIPTOR_BYTES = 64
SIZE_BYTES_MAX = (1 << 63) - 1

_DUMP_MAGIC = b'LZMF'
_DUMP_HEADER = struct.Struct('<4sIQIQ')


def count_chunks(size_bytes: int, chunk_size_bytes: int) -> int:
    return -(-size_bytes // chunk_size_bytes)


def depth_for(chunk_count: int) -> int:
    """The least number of levels, at least one."""
    depth = 1
    while 1 << (FANOUT_BITS * depth) < chunk_count:
        depth += 1
    return depth


@dataclasses.dataclass(frozen=True)
class Descriptor:
    """What a root digest names.

    :ivar tree: digest of the tree's root node; ``HOLE`` if all are holes
    """

    size_bytes: int
    chunk_size_bytes: int
    tree: bytes

    @property
    def chunk_count(self) -> int:
        return count_chunks(self.size_bytes, self.chunk_size_bytes)

    @property
    def depth(self) -> int:
        return depth_for(self.chunk_count)

    def encode(self) -> bytes:
        return _DESCRIPTOR.pack(
            FORMAT,
            self.chunk_size_bytes,
            self.size_bytes,
            self.depth,
            b'',
            self.tree,
        )

    @classmethod
    def decode(cls, content: bytes) -> 'Descriptor':
        """:raises ChunkCorrupt: it breaks a rule of FORMAT.rst"""
        if len(content) != DESCRIPTOR_BYTES:
            raise exceptions.ChunkCorrupt('descriptor has the wrong length')
        form, chunk_size_bytes, size_bytes, depth, reserved, tree = (
            _DESCRIPTOR.unpack(content)
        )
        if form != FORMAT:
            raise exceptions.ChunkCorrupt(
                f'descriptor has format {form}, not {FORMAT}'
            )
        try:
            chunk.check_size(chunk_size_bytes)
        except exceptions.InvalidConfiguration as exc:
            raise exceptions.ChunkCorrupt(f'descriptor: {exc}') from exc
        found = cls(size_bytes, chunk_size_bytes, tree)
        if (
            size_bytes > SIZE_BYTES_MAX
            or depth != found.depth
            or reserved != bytes(15)
            or (not size_bytes and tree != HOLE)
        ):
            raise exceptions.ChunkCorrupt('descriptor contradicts itself')
        return found


def encode_node(level: int, table: bytes) -> bytes:
    """A node from its 256 digests (a hole is zeros), at least one present."""
    if HOLE not in table:
        head = bytes((level,)) + bytes(7) + b'\xff' * (FANOUT // 8)
        return head + table
    presence = 0
    present = []
    for slot in range(FANOUT):
        entry = table[slot * 32 : slot * 32 + 32]
        if entry != HOLE:
            presence |= 1 << slot
            present.append(entry)
    head = bytes((level,)) + bytes(7) + presence.to_bytes(32, 'little')
    return head + b''.join(present)


def decode_node(content: bytes, level: int, slot_count: int) -> bytes:
    """A node's table of 256 digests.

    :param slot_count: how many slots lie inside the disk
    :raises ChunkCorrupt: it breaks a rule of FORMAT.rst
    """
    head = content[:_NODE_HEADER_BYTES]
    presence = int.from_bytes(head[8:], 'little')
    count = presence.bit_count()
    if (
        len(head) < _NODE_HEADER_BYTES
        or head[0] != level
        or head[1:8] != bytes(7)
        or not presence
        or presence.bit_length() > slot_count
        or len(content) != _NODE_HEADER_BYTES + count * 32
    ):
        raise exceptions.ChunkCorrupt(f'node of level {level} is malformed')
    if count == FANOUT:
        table = content[_NODE_HEADER_BYTES:]
        if any(table[at : at + 32] == HOLE for at in range(0, 8192, 32)):
            raise exceptions.ChunkCorrupt('node lists a hole as present')
        return table
    built = bytearray(TABLE_BYTES)
    at = _NODE_HEADER_BYTES
    while presence:
        slot = (presence & -presence).bit_length() - 1
        presence &= presence - 1
        entry = content[at : at + 32]
        if entry == HOLE:
            raise exceptions.ChunkCorrupt('node lists a hole as present')
        built[slot * 32 : slot * 32 + 32] = entry
        at += 32
    return bytes(built)


def slots_inside(chunk_count: int, level: int, first: int) -> int:
    """How many slots of the node at chunk ``first`` lie inside the disk."""
    span = 1 << (FANOUT_BITS * level)
    return min(FANOUT, count_chunks(chunk_count - first, span))


class Encoded(NamedTuple):
    """A manifest as objects: nodes bottom-up, then the descriptor."""

    root: bytes
    descriptor: bytes
    nodes: list[tuple[bytes, bytes]]


class Manifest:
    """The chunk digests of one version.

    :param leaves: leaf index to 8192 bytes (256 digests, a hole is zeros)
    :param leaf_digests: those already known, which saves hashing them again
    """

    def __init__(
        self,
        size_bytes: int,
        chunk_size_bytes: int,
        leaves: Mapping[int, bytes],
        leaf_digests: Mapping[int, bytes] | None = None,
    ) -> None:
        self.size_bytes = size_bytes
        self.chunk_size_bytes = chunk_size_bytes
        self.chunk_count = count_chunks(size_bytes, chunk_size_bytes)
        self._leaves = {
            index: leaf
            for index, leaf in leaves.items()
            if leaf != _EMPTY_TABLE
        }
        self._leaf_digests = dict(leaf_digests or {})

    def get(self, index: int) -> bytes | None:
        """The digest of the chunk at an index; None is a hole."""
        leaf = self._leaves.get(index >> FANOUT_BITS)
        if leaf is None:
            return None
        at = (index & (FANOUT - 1)) * 32
        entry = leaf[at : at + 32]
        return None if entry == HOLE else entry

    def leaves(self) -> list[tuple[int, bytes]]:
        """The leaves that hold a chunk, ascending."""
        return sorted(self._leaves.items())

    def chunks(self) -> Iterator[tuple[int, bytes]]:
        """Every chunk that is not a hole: its index and digest, ascending."""
        for leaf_index, leaf in self.leaves():
            first = leaf_index << FANOUT_BITS
            for slot in range(FANOUT):
                entry = leaf[slot * 32 : slot * 32 + 32]
                if entry != HOLE:
                    yield first + slot, entry

    def encode(self, keys: digest.Keys) -> Encoded:
        """The objects of this manifest; a pure function of its content."""
        nodes = []
        level_digests = {}
        for index, leaf in self.leaves():
            node = encode_node(0, leaf)
            name = self._leaf_digests.get(index)
            if name is None:
                name = digest.of(node, keys.node)
            nodes.append((name, node))
            level_digests[index] = name
        for level in range(1, depth_for(self.chunk_count)):
            level_digests, encoded = _encode_level(level, level_digests, keys)
            nodes.extend(encoded)
        descriptor = Descriptor(
            self.size_bytes, self.chunk_size_bytes, level_digests.get(0, HOLE)
        ).encode()
        root = digest.of(descriptor, keys.descriptor)
        return Encoded(root, descriptor, nodes)

    def dumps(self) -> bytes:
        """A self-checking copy to keep in a local file (FORMAT.rst)."""
        parts = [
            _DUMP_HEADER.pack(
                _DUMP_MAGIC,
                FORMAT,
                self.size_bytes,
                self.chunk_size_bytes,
                len(self._leaves),
            )
        ]
        for index, leaf in self.leaves():
            node = encode_node(0, leaf)
            parts.append(struct.pack('<QI', index, len(node)) + node)
        body = b''.join(parts)
        return body + blake3.blake3(body).digest()

    @classmethod
    def loads(cls, data: bytes) -> 'Manifest':
        """:raises ChunkCorrupt: it is not what :meth:`dumps` wrote"""
        body = data[:-32]
        if blake3.blake3(body).digest() != data[-32:]:
            raise exceptions.ChunkCorrupt('manifest file is damaged')
        try:
            magic, form, size_bytes, chunk_size_bytes, count = (
                _DUMP_HEADER.unpack_from(body)
            )
        except struct.error as exc:
            raise exceptions.ChunkCorrupt('manifest file is short') from exc
        if magic != _DUMP_MAGIC or form != FORMAT:
            raise exceptions.ChunkCorrupt('manifest file has another format')
        leaves = {}
        at = _DUMP_HEADER.size
        for _ in range(count):
            index, node_bytes = struct.unpack_from('<QI', body, at)
            at += 12
            leaves[index] = decode_node(body[at : at + node_bytes], 0, FANOUT)
            at += node_bytes
        return cls(size_bytes, chunk_size_bytes, leaves)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Manifest)
            and self.size_bytes == other.size_bytes
            and self.chunk_size_bytes == other.chunk_size_bytes
            and self._leaves == other._leaves
        )

    __hash__ = None  # type: ignore[assignment]


def _encode_level(
    level: int, below: Mapping[int, bytes], keys: digest.Keys
) -> tuple[dict[int, bytes], list[tuple[bytes, bytes]]]:
    tables: dict[int, bytearray] = {}
    for index, name in below.items():
        table = tables.setdefault(index >> FANOUT_BITS, bytearray(TABLE_BYTES))
        at = (index & (FANOUT - 1)) * 32
        table[at : at + 32] = name
    digests = {}
    encoded = []
    for index, table in sorted(tables.items()):
        node = encode_node(level, bytes(table))
        digests[index] = digest.of(node, keys.node)
        encoded.append((digests[index], node))
    return digests, encoded
