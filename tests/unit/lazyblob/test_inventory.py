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
"""An inventory keeps digests as a set does, in a third of the room."""

import random
import tracemalloc

import pytest

from lazyblob import inventory

DRAW = random.Random(7)
NAMES = [DRAW.randbytes(32) for _ in range(2000)]


@pytest.fixture
def found():
    return inventory.Inventory()


def test_what_was_added_is_there_with_its_size(found):
    for index, name in enumerate(NAMES):
        assert found.size(name) is None
        assert found.add(name, index)
        assert not found.add(name, 1)
    assert len(found) == len(NAMES)
    assert [found.size(name) for name in NAMES] == list(range(len(NAMES)))
    assert found.add(b'huge'.ljust(32), 1 << 40)
    assert found.size(b'huge'.ljust(32)) == (1 << 32) - 1


def test_marks_add_up(found):
    name = NAMES[0]
    assert found.marks(name) == 0
    assert found.mark(name, 1) == 0
    assert found.mark(name, 4) == 1
    assert found.marks(name) == 5
    assert (len(found), found.size(name)) == (1, 0)
    found.add(NAMES[1], 9)
    assert sorted(found) == sorted([(name, 0, 5), (NAMES[1], 9, 0)])


def test_digests_that_overlap_are_told_apart(found):
    """A bucket is searched as bytes: an entry must begin where one does."""
    head = b'ab'
    first, second = head + b'x' * 15 + b'y' * 15, head + b'y' * 15 + b'x' * 15
    found.add(first)
    found.add(second)
    between = head + (first[2:] + bytes(5) + second[2:])[10:40]
    assert found.size(between) is None
    assert found.add(between, 3)
    assert found.size(between) == 3
    assert len(found) == 3


def test_it_takes_less_than_50_bytes_a_digest():
    count = 200_000
    draw = random.Random(1)
    tracemalloc.start()
    try:
        found = inventory.Inventory()
        empty_bytes, _ = tracemalloc.get_traced_memory()
        for _ in range(count):
            found.add(draw.randbytes(32), 1)
        full_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Buckets of three: of a million each has five times as many.
    assert empty_bytes < 1 << 20
    buckets_bytes = 65536 * 64
    assert full_bytes - empty_bytes - buckets_bytes < 50 * count
