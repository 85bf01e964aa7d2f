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
"""Manifests: one form for one content, and differences as a model has them."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyblob import digest
from lazyblob import exceptions
from lazyblob import manifest
from lazyblob import tree

KEYS = digest.keys(digest.REPOSITORY_SCOPE)
CHUNK_BYTES = 4096


def entry(number):
    return hashlib.sha256(bytes((number,))).digest()


# Chunk counts around the limits of depth 1, 2 and 3.
COUNTS = st.sampled_from([1, 2, 255, 256, 257, 300, 65536, 65537, 70000])


@st.composite
def contents(draw, count=None):
    """A disk as a model: its chunk count, and digests by index."""
    count = draw(COUNTS) if count is None else count
    near = st.sampled_from(
        [i for i in (0, 1, 255, 256, 65535, 65536, count - 1) if i < count]
    )
    index = st.one_of(near, st.integers(0, count - 1))
    chunks = st.dictionaries(index, st.integers(0, 3), max_size=12)
    return count, {i: entry(n) for i, n in draw(chunks).items()}


def build(count, chunks, parent=None):
    leaves = {}
    if parent is not None:
        leaves = {index: bytearray(leaf) for index, leaf in parent.leaves()}
    for index, name in chunks.items():
        leaf = leaves.setdefault(index >> 8, bytearray(8192))
        at = (index & 255) * 32
        leaf[at : at + 32] = name or manifest.HOLE
    tables = {index: bytes(leaf) for index, leaf in leaves.items()}
    return manifest.Manifest(count * CHUNK_BYTES - 7, CHUNK_BYTES, tables)


class Nodes:
    """A store of nodes that counts what is read."""

    def __init__(self, *encoded):
        self.by_digest = {}
        self.read = []
        for one in encoded:
            self.by_digest.update(dict(one.nodes))

    def __call__(self, name):
        self.read.append(name)
        return self.by_digest[name]

    def tree(self, encoded):
        found = manifest.Descriptor.decode(encoded.descriptor)
        return tree.Tree(found, self)


@given(contents(), contents())
def test_different_content_has_different_roots(one, other):
    roots = [build(*c).encode(KEYS).root for c in (one, other)]
    assert (roots[0] == roots[1]) == (one == other)


@given(contents())
def test_a_manifest_reads_back_from_its_nodes(content):
    count, chunks = content
    made = build(count, chunks)
    encoded = made.encode(KEYS)
    read = Nodes(encoded).tree(encoded)
    assert read.load() == made
    assert dict(made.chunks()) == chunks
    for index in {0, count - 1, *chunks}:
        assert read.get(index) == made.get(index) == chunks.get(index)
    assert manifest.Manifest.loads(made.dumps()) == made


@given(contents())
def test_growth_makes_the_old_tree_child_zero(content):
    count, chunks = content
    small = build(count, chunks)
    old = manifest.Descriptor.decode(small.encode(KEYS).descriptor)
    grown = build(256**old.depth + 1, {}, small)
    encoded = grown.encode(KEYS)
    new = manifest.Descriptor.decode(encoded.descriptor)
    assert new.depth == old.depth + 1
    assert dict(grown.chunks()) == chunks
    if chunks:
        top = manifest.decode_node(encoded.nodes[-1][1], old.depth, 2)
        assert top[:32] == old.tree
        assert top[32:] == bytes(255 * 32)


@given(contents(), contents())
def test_a_difference_is_what_the_models_differ_in(one, other):
    before, after = (build(*c).encode(KEYS) for c in (one, other))
    nodes = Nodes(before, after)
    found = list(tree.diff(nodes.tree(before), nodes.tree(after)))
    expected = [
        tree.Difference(i, one[1].get(i), other[1].get(i))
        for i in sorted({*one[1], *other[1]})
        if one[1].get(i) != other[1].get(i)
    ]
    assert found == expected


def test_equal_subtrees_are_not_read():
    chunks = dict.fromkeys(range(0, 65536, 256), entry(1))
    before = build(65536, chunks)
    after = build(65536, {7: entry(2)}, before)
    nodes = Nodes(before.encode(KEYS), after.encode(KEYS))
    trees = [nodes.tree(m.encode(KEYS)) for m in (before, after)]
    assert [d.index for d in tree.diff(*trees)] == [7]
    # Of 256 leaves a side, one.
    assert len(nodes.read) == 4


def test_versions_of_different_chunk_sizes_are_not_compared():
    one = manifest.Manifest(8192, 4096, {}).encode(KEYS)
    other = manifest.Manifest(8192, 8192, {}).encode(KEYS)
    nodes = Nodes()
    with pytest.raises(exceptions.Conflict, match='8192'):
        list(tree.diff(nodes.tree(one), nodes.tree(other)))


def node(level=0, present=1, digests=None, reserved=bytes(7)):
    if digests is None:
        digests = entry(1) * present.bit_count()
    head = bytes((level,)) + reserved + present.to_bytes(32, 'little')
    return head + digests


@pytest.mark.parametrize(
    'content',
    [
        b'',
        node()[:39],
        node(level=1),
        node(reserved=bytes(6) + b'\1'),
        node(present=0),
        node(present=1 << 4),
        node(digests=entry(1) + entry(2)),
        node(digests=entry(1)[:31]),
        node(digests=bytes(32)),
    ],
    ids=[
        'empty',
        'short',
        'level',
        'reserved',
        'nothing present',
        'past the end',
        'too many digests',
        'half a digest',
        'a hole as present',
    ],
)
def test_a_node_that_breaks_a_rule_is_refused(content):
    with pytest.raises(exceptions.ChunkCorrupt):
        manifest.decode_node(content, 0, 4)


def descriptor(**changed):
    values = {
        'form': 1,
        'chunk_size': 4096,
        'size': 4096,
        'depth': 1,
        'reserved': bytes(15),
        'tree': entry(1),
        **changed,
    }
    return manifest._DESCRIPTOR.pack(*values.values())


@pytest.mark.parametrize(
    'content',
    [
        b'',
        descriptor() + b'\0',
        descriptor(form=2),
        descriptor(chunk_size=5000),
        descriptor(chunk_size=8 << 20),
        descriptor(size=1 << 63),
        descriptor(depth=2),
        descriptor(depth=0),
        descriptor(reserved=bytes(14) + b'\1'),
        descriptor(size=0),
    ],
)
def test_a_descriptor_that_breaks_a_rule_is_refused(content):
    with pytest.raises(exceptions.ChunkCorrupt):
        manifest.Descriptor.decode(content)
    assert manifest.Descriptor.decode(descriptor()).size_bytes == 4096


@given(contents(count=300), st.integers(0))
def test_a_damaged_copy_of_a_manifest_is_refused(content, place):
    data = bytearray(build(*content).dumps())
    data[place % len(data)] ^= 1
    with pytest.raises(exceptions.ChunkCorrupt):
        manifest.Manifest.loads(bytes(data))
