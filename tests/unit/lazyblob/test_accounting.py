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
"""What versions take, against a count that keeps everything in memory."""

import itertools
import random
import tracemalloc

import pytest

from lazyblob import accounting
from lazyblob import digest
from lazyblob import exceptions
from lazyblob.catalog import api

CHUNK = 4096


def create(repo, blob_id, *chunks):
    """An image of named chunks; None is a hole."""
    data = b''.join(
        bytes(CHUNK) if name is None else random.Random(name).randbytes(CHUNK)
        for name in chunks
    )
    return repo.create([data], blob_id=blob_id, chunk_size_bytes=CHUNK)


def commit(repo, blob_id, changes):
    """A version more of a blob."""
    blob = repo.catalog.get(blob_id)
    head = repo.catalog.version(blob_id)
    parent = repo.manifest(head.root)
    with repo.commit(blob, parent, size_bytes=head.size_bytes) as target:
        for index, name in changes.items():
            target.put(index, random.Random(name).randbytes(CHUNK))
        return repo.catalog.publish(
            blob_id,
            epoch=blob.epoch,
            parent=head.number,
            commit_id=f'c{head.number}',
            root=target.finish(),
            size_bytes=head.size_bytes,
            session_id=target.session_id,
        )


def reached(repo, version):
    """Every object of a version."""
    made = repo.manifest(version.root)
    encoded = made.encode(digest.keys(digest.REPOSITORY_SCOPE))
    return {
        encoded.root,
        *(name for name, _ in encoded.nodes),
        *(name for _, name in made.chunks()),
    }


def check(repo):
    """Every figure against sets in memory; the account."""
    found = repo.account()
    sizes = dict(repo.store.list())
    objects = {
        (version.blob_id, version.number): reached(repo, version)
        for version in accounting.all_versions(repo.catalog)
    }
    assert len(found.versions) == len(objects)
    for usage in found.versions:
        key = (usage.blob_id, usage.number)
        others = set().union(*(o for k, o in objects.items() if k != key))
        strangers = set().union(
            *(o for k, o in objects.items() if k[0] != usage.blob_id)
        )
        own = set().union(
            *(o for k, o in objects.items() if k[0] == usage.blob_id)
        )
        assert usage.unique_bytes == total(sizes, objects[key] - others)
        assert usage.blob_bytes == total(sizes, own - strangers)
        assert usage.shared_bytes == usage.stored_bytes - usage.unique_bytes
    everything = set().union(*objects.values())
    assert found.physical_bytes == sum(sizes.values())
    assert found.unreferenced_bytes == total(sizes, set(sizes) - everything)
    assert found.missing_objects == len(everything - set(sizes))
    return found


def total(sizes, names):
    return sum(sizes.get(name, 0) for name in names)


def test_what_one_version_takes_is_its_own(repo):
    version = create(repo, 'image', 'a', None, 'b', None)
    (usage,) = check(repo).versions
    assert usage.logical_bytes == version.size_bytes == 4 * CHUNK
    assert usage.mapped_bytes == 2 * CHUNK
    assert usage.unique_bytes == usage.stored_bytes == usage.blob_bytes
    assert usage.shared_bytes == 0


def test_a_clone_shares_everything_until_it_differs(repo):
    create(repo, 'image', *range(600))
    repo.clone('image', blob_id='clone')
    assert {usage.unique_bytes for usage in check(repo).versions} == {0}
    commit(repo, 'clone', {7: 'new'})
    by_name = {(u.blob_id, u.number): u for u in check(repo).versions}
    newest = by_name['clone', 2]
    # A chunk, the nodes on its path, the descriptor.
    assert CHUNK < newest.unique_bytes < 0.1 * newest.stored_bytes
    assert by_name['clone', 1].unique_bytes == 0
    assert newest.blob_bytes == newest.unique_bytes


def test_what_deleting_leaves_is_unreferenced(repo):
    create(repo, 'image', *range(10))
    create(repo, 'other', 1, 2, 'x')
    before = check(repo)
    assert before.unreferenced_bytes == 0
    unique = {u.blob_id: u.unique_bytes for u in before.versions}
    repo.delete('other')
    assert check(repo).unreferenced_bytes == unique['other']


def test_versions_of_one_blob_share_with_one_another(repo):
    create(repo, 'image', *range(10))
    commit(repo, 'image', {3: 'new'})
    first, second = check(repo).versions
    assert first.blob_bytes == second.blob_bytes
    assert first.blob_bytes > first.unique_bytes + second.unique_bytes


def test_random_histories_add_up(repo, rng):
    create(repo, 'blob-0', *range(300))
    for number in range(1, 25):
        blobs = [blob.id for blob in repo.catalog.list_blobs()]
        act = rng.choice(['clone', 'commit', 'commit', 'create', 'delete'])
        chosen = rng.choice(blobs)
        if act == 'clone':
            repo.clone(chosen, blob_id=f'blob-{number}')
        elif act == 'commit':
            chunks = rng.sample(range(300), 3)
            commit(repo, chosen, {index: rng.random() for index in chunks})
        elif act == 'create':
            names = [rng.choice([None, *range(40)]) for _ in range(300)]
            create(repo, f'blob-{number}', *names)
        elif len(blobs) > 1:
            repo.delete(chosen)
    check(repo)


def test_a_missing_chunk_is_counted_and_no_failure(repo):
    version = create(repo, 'image', *range(5))
    _, name = next(iter(repo.manifest(version.root).chunks()))
    repo.store.delete(name)
    assert check(repo).missing_objects == 1


def test_memory_does_not_grow_with_the_chunks(repo, monkeypatch):
    """Chunks that nobody stored: only the manifest is real."""
    monkeypatch.setattr(accounting, '_CACHE_KIB', 1024)
    counter = itertools.count()
    blob = repo.catalog.create(
        'image', kind=api.Kind.IMAGE, project_id='', chunk_size_bytes=CHUNK
    )
    chunks = 20_000
    with repo.commit(blob, None, size_bytes=chunks * CHUNK) as target:
        for index in range(chunks):
            name = digest.of(b'%d' % next(counter), bytes(32))
            target._builder.set(index, name)
        monkeypatch.setattr(repo.store, 'sync', lambda names: None)
        root = target.finish()
        repo.catalog.publish(
            'image',
            epoch=1,
            parent=0,
            commit_id='c',
            root=root,
            size_bytes=chunks * CHUNK,
            session_id=target.session_id,
        )
    tracemalloc.start()
    found = repo.account()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.missing_objects == chunks
    # Half of it are a tree's cached nodes; digests in a set were 2.3 MiB.
    assert peak < 1 << 20


def test_a_clone_may_grow_at_once(repo):
    create(repo, 'image', *range(300))
    version = repo.clone('image', blob_id='clone', size_bytes=700 * CHUNK)
    assert version.size_bytes == 700 * CHUNK
    reader = repo.open('clone')
    start = b''.join(repo.open('image').stream())
    assert reader.read(0, len(start)) == start
    assert not any(reader.read(len(start), 400 * CHUNK))
    again = repo.clone('image', blob_id='clone', size_bytes=700 * CHUNK)
    assert again == version
    assert [v.number for v in repo.catalog.versions('clone')] == [2]
    assert repo.catalog.sessions() == []
    repo.delete('image')
    assert (
        repo.clone('image', blob_id='clone', size_bytes=700 * CHUNK) == version
    )


def test_a_growth_that_died_is_completed(repo, monkeypatch):
    create(repo, 'image', *range(3))

    def die(*_, **__):
        raise exceptions.CatalogUnavailable('made for this test')

    with monkeypatch.context() as patch:
        patch.setattr(repo.catalog, 'publish', die)
        with pytest.raises(exceptions.CatalogUnavailable):
            repo.clone('image', blob_id='clone', size_bytes=9 * CHUNK)
    version = repo.clone('image', blob_id='clone', size_bytes=9 * CHUNK)
    assert version.size_bytes == 9 * CHUNK


def test_a_clone_never_shrinks(repo):
    create(repo, 'image', *range(3))
    with pytest.raises(exceptions.InvalidConfiguration, match='only grow'):
        repo.clone('image', blob_id='clone', size_bytes=2 * CHUNK)
    with pytest.raises(exceptions.NotFound):
        repo.catalog.get('clone')
