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
"""The next version's manifest: canonical, and made from what changes alone.

Nodes are counted, so that a machine's speed plays no part.
"""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyblob import changing
from lazyblob import digest
from lazyblob import manifest
from lazyblob import tree

KEYS = digest.keys(digest.REPOSITORY_SCOPE)
CHUNK_BYTES = 512 << 10
GIB = 1 << 30
# Chunk counts around the limits of depth 1, 2 and 3.
COUNTS = st.sampled_from([1, 2, 255, 256, 257, 300, 65536, 65537, 70000])


def entry(number):
    return hashlib.sha256(number.to_bytes(4, 'little')).digest()


@st.composite
def contents(draw):
    """A disk as a model: its chunk count, and digests or None by index."""
    count = draw(COUNTS)
    near = st.sampled_from(
        [i for i in (0, 1, 255, 256, 65535, 65536, count - 1) if i < count]
    )
    index = st.one_of(near, st.integers(0, count - 1))
    value = st.one_of(st.none(), st.integers(0, 3).map(entry))
    return count, draw(st.dictionaries(index, value, max_size=12))


class Store:
    """Nodes by digest; notes what is read and what is written."""

    def __init__(self):
        self.nodes = {}
        self.read = []
        self.written = []

    def __call__(self, name):
        self.read.append(name)
        return self.nodes[name]

    def tree(self, encoded):
        return tree.Tree(manifest.Descriptor.decode(encoded.descriptor), self)

    def version(self, count, changes, parent=None):
        """Write one, as a commit does; a new look at its parent."""
        self.read.clear()
        builder = changing.Builder(parent and self.tree(parent))
        for index, name in changes.items():
            builder.get(index)
            builder.set(index, name)
        made = builder.finish(count * CHUNK_BYTES - 7, CHUNK_BYTES, KEYS)
        self.written = [name for name, _ in made.nodes]
        self.nodes.update(made.nodes)
        return made


def from_nothing(count, chunks):
    """What the form asks for: all of it, out of the model."""
    leaves = {}
    for index, name in chunks.items():
        leaf = leaves.setdefault(index >> 8, bytearray(8192))
        at = (index & 255) * 32
        leaf[at : at + 32] = name or manifest.HOLE
    tables = {index: bytes(leaf) for index, leaf in leaves.items()}
    return manifest.Manifest(
        count * CHUNK_BYTES - 7, CHUNK_BYTES, tables
    ).encode(KEYS)


@given(st.lists(contents(), min_size=1, max_size=4))
def test_a_version_has_one_root_however_it_came_about(lives):
    store, model, head, count = Store(), {}, None, 1
    for grown, changes in lives:
        count = max(count, grown)
        model |= changes
        known = set(store.nodes)
        head = store.version(count, changes, head)
        whole = from_nothing(count, model)
        assert (head.root, head.descriptor) == (whole.root, whole.descriptor)
        # All that it reaches is there, and nothing else was made.
        assert set(dict(whole.nodes)) <= known | set(store.written)
        assert set(store.written) <= set(dict(whole.nodes))


@given(contents(), contents())
def test_what_the_parent_has_is_not_written_again(one, other):
    store = Store()
    parent = store.version(*one)
    count = max(one[0], other[0])
    assert store.version(count, dict(one[1]), parent).root == (
        from_nothing(count, one[1]).root
    )
    # The same again changes no leaf; growing adds what is above the root.
    added = manifest.depth_for(count) - manifest.depth_for(one[0])
    assert len(store.written) <= added


def dirty(count=30, first=700):
    return {first + n: entry(n) for n in range(count)}


def full(disk_bytes, filled_bytes=None):
    filled = (filled_bytes or disk_bytes) // CHUNK_BYTES
    return disk_bytes // CHUNK_BYTES, {
        index: entry(1000 + index) for index in range(filled)
    }


def cost(store, parent, disk_bytes, changes):
    """Nodes read and written by the next version."""
    store.version(disk_bytes // CHUNK_BYTES, changes, parent)
    return len(store.read), len(store.written)


def test_15_mib_cost_a_leaf_and_what_is_above_it():
    """Whatever the disk's size, and however full it is."""
    found = {}
    for name, disk_bytes, filled_bytes in (
        ('1 GB', GIB, GIB),
        ('20 GB', 20 * GIB, 20 * GIB),
        ('1 TB sparse', 1024 * GIB, GIB),
    ):
        store = Store()
        parent = store.version(*full(disk_bytes, filled_bytes))
        found[name] = cost(store, parent, disk_bytes, dirty())
    print(found)
    # A leaf and the root; of a terabyte one node more on the path.
    assert found['1 GB'] == found['20 GB'] == (2, 2)
    assert found['1 TB sparse'] == (3, 3)


def test_scattered_changes_cost_each_leaf_once():
    store = Store()
    parent = store.version(*full(20 * GIB))
    blocks = range(0, 20 * GIB // CHUNK_BYTES, 11)
    assert len(blocks) > 3700
    changes = {index: entry(index) for index in blocks}
    # 160 leaves and the root.
    assert cost(store, parent, 20 * GIB, changes) == (161, 161)


def test_version_1000_costs_what_version_2_did():
    store = Store()
    count, chunks = full(GIB)
    head = store.version(count, chunks)
    costs = []
    for number in range(2, 1002):
        head = store.version(count, dirty(3, number), head)
        costs.append((len(store.read), len(store.written)))
    # Three neighbours lie in one leaf, or in two.
    assert set(costs) == {(2, 2), (3, 3)}
    assert costs[0] == costs[-1]


@pytest.mark.parametrize(
    ('name', 'disk_bytes', 'filled_bytes', 'levels'),
    [
        ('1 GB', GIB, GIB, 2),
        ('20 GB', 20 * GIB, 20 * GIB, 2),
        ('1 TB', 1024 * GIB, GIB, 3),
    ],
)
def test_a_difference_costs_what_differs(
    name, disk_bytes, filled_bytes, levels
):
    store = Store()
    parent = store.version(*full(disk_bytes, filled_bytes))
    after = store.version(disk_bytes // CHUNK_BYTES, dirty(), parent)
    store.read.clear()
    found = list(tree.diff(store.tree(parent), store.tree(after)))
    assert [each.index for each in found] == list(dirty())
    assert len(store.read) == 2 * levels, name
