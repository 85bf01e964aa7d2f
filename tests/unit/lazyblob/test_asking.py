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
"""A store far away is asked for what it may have, and for nothing else."""

import collections
import random

import pytest

from lazyblob.chunk_store import file

CHUNK = 4096
COUNT = 200
DATA = random.Random(1).randbytes(COUNT * CHUNK)


class Counting(file.FileStore):
    """Files, counted as if they were far away."""

    is_remote = True

    def __init__(self, url):
        super().__init__(url)
        self.calls = collections.Counter()

    def put(self, *arguments):
        self.calls['put'] += 1
        return super().put(*arguments)

    def has(self, digest):
        self.calls['has'] += 1
        return super().has(digest)

    def get(self, *arguments):
        self.calls['get'] += 1
        return super().get(*arguments)

    def replace(self, *arguments):
        self.calls['replace'] += 1
        return super().replace(*arguments)


@pytest.fixture
def store(repo):
    repo.store = Counting(repo.store.url)
    return repo.store


def create(repo, blob_id, data=DATA):
    return repo.create([data], blob_id=blob_id, chunk_size_bytes=CHUNK)


def commit(repo, data):
    """The chunks of a COMMIT that changes all of a disk."""
    head = repo.catalog.version('image')
    blob = repo.catalog.get('image')
    parent = repo.tree(head.root)
    with repo.commit(blob, parent, size_bytes=head.size_bytes) as target:
        for index in range(COUNT):
            target.put(index, data[index * CHUNK : (index + 1) * CHUNK])
        return target.statistics


def fresh(seed):
    return random.Random(seed).randbytes(COUNT * CHUNK)


def test_a_new_image_is_put_without_asking(repo, store):
    create(repo, 'image')
    assert store.calls['has'] == 0
    # Chunks, a leaf and a descriptor.
    assert store.calls['put'] == COUNT + 2
    assert store.calls['get'] == 0


def test_one_that_is_known_is_asked_for_after_a_few(repo, store):
    create(repo, 'image')
    store.calls.clear()
    create(repo, 'again')
    # It is read back as well: an import does not believe the store.
    assert store.calls['get'] == COUNT + 2
    assert store.calls['put'] <= 16
    assert store.calls['has'] >= COUNT - 16


def test_a_commit_of_known_chunks_asks_and_of_new_ones_stops_asking(
    repo, store
):
    create(repo, 'image')
    create(repo, 'other', fresh(2))
    store.calls.clear()
    found = commit(repo, fresh(2))
    assert (found.known_chunks, found.stored_chunks) == (COUNT, 0)
    assert store.calls['put'] <= 16
    store.calls.clear()
    half = COUNT // 2 * CHUNK
    found = commit(repo, fresh(2)[:half] + fresh(3)[half:])
    assert (found.known_chunks, found.stored_chunks) == (COUNT / 2, COUNT / 2)
    assert store.calls['put'] <= COUNT / 2 + 16
    assert store.calls['has'] <= COUNT / 2 + 16


def test_files_are_always_asked(repo, store):
    store.is_remote = False
    create(repo, 'image')
    create(repo, 'again')
    found = commit(repo, fresh(2))
    assert found.stored_chunks == COUNT
    # Both images, and the COMMIT; twice where a put looks once more.
    assert store.calls['has'] >= 3 * COUNT


@pytest.mark.expect_logs('was damaged in')
def test_a_damaged_chunk_that_was_not_asked_for_is_replaced(repo, store):
    """An import reads back what a put says was there."""
    create(repo, 'image')
    (name, _size), *_ = repo.store.list()
    damaged = bytearray(store.get(name, 1 << 20))
    damaged[-1] ^= 1
    store.replace(name, bytes(damaged))
    store.calls.clear()
    create(repo, 'again')
    assert store.calls['replace'] == 1
    assert repo.open('image').read(0, len(DATA)) == DATA
