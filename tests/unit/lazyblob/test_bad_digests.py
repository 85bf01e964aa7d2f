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
"""Writers and the list of bad digests."""

import random

import pytest

from lazyblob import exceptions
from lazyblob import verifying
from lazyblob.catalog import api
from lazyblob.chunk_store import objects

CHUNK = 4096
SIZES = {'chunk_size_bytes': CHUNK}
DATA = random.Random(5).randbytes(6 * CHUNK)
LOOK = verifying.Options(reads_data=False)


class Counting:
    """A catalog that counts its calls, and may fail one of them."""

    def __init__(self, inner):
        self._inner = inner
        self.calls = []
        self.failing = ''

    def __getattr__(self, name):
        inner = getattr(self._inner, name)

        def call(*arguments, **more):
            self.calls.append(name)
            if name == self.failing:
                raise exceptions.CatalogUnavailable('made for this test')
            return inner(*arguments, **more)

        return call


@pytest.fixture
def image(repo):
    return repo.create([DATA], blob_id='image', **SIZES)


@pytest.fixture
def disk(repo, image):
    repo.clone('image', blob_id='disk', kind=api.Kind.DISK)
    repo.catalog.claim('disk', 'secret')
    return repo.catalog.get('disk')


@pytest.fixture
def catalog(repo, disk):
    repo.catalog = Counting(repo.catalog)
    return repo.catalog


def path_of(repo, name):
    return repo.store._root / objects.key(name)


def damage(repo, name):
    """One bit, which no length shows."""
    path = path_of(repo, name)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


def chunk_at(repo, index, blob_id='image'):
    return repo.manifest(repo.catalog.version(blob_id).root).get(index)


def listed(repo):
    return [row.digest for row in repo.catalog.bad_digests()]


def commit(repo, disk, chunks, *, publishes=True):
    head = repo.catalog.version('disk')
    parent = repo.manifest(head.root)
    with repo.commit(disk, parent, size_bytes=head.size_bytes) as target:
        outcomes = [target.put(at, data) for at, data in chunks.items()]
        root = target.finish()
        if publishes:
            repo.catalog.publish(
                'disk',
                epoch=disk.epoch,
                parent=head.number,
                commit_id=f'after {head.number}',
                root=root,
                size_bytes=head.size_bytes,
                session_id=target.session_id,
                secret='secret',
            )
    return outcomes


def test_a_writer_overwrites_what_is_listed(repo, disk, expect_logs):
    name = chunk_at(repo, 0)
    damage(repo, name)
    repo.catalog.report_bad([name.hex()], 'test')
    with expect_logs('was listed as bad'):
        # Equal content at another place: the store is said to have it.
        assert commit(repo, disk, {5: DATA[:CHUNK]}) == ['stored']
    assert listed(repo) == []
    assert repo.verify().is_sound


def test_what_is_missing_and_listed_leaves_the_list_too(
    repo, disk, expect_logs
):
    name = chunk_at(repo, 0)
    path_of(repo, name).unlink()
    repo.catalog.report_bad([name.hex()], 'test')
    with expect_logs('was listed as bad'):
        commit(repo, disk, {5: DATA[:CHUNK]})
    assert listed(repo) == []
    assert repo.verify().is_sound


def test_a_chunk_that_the_parent_has_is_overwritten_too(
    repo, disk, expect_logs
):
    name = chunk_at(repo, 0)
    damage(repo, name)
    repo.catalog.report_bad([name.hex()], 'test')
    with expect_logs('was listed as bad'):
        assert commit(repo, disk, {0: DATA[:CHUNK]}) == ['stored']
    assert repo.verify().is_sound


def test_nodes_and_roots_are_overwritten_by_who_writes_them(
    repo, image, expect_logs
):
    names = [repo.tree(image.root).descriptor.tree, bytes.fromhex(image.root)]
    for name in names:
        damage(repo, name)
    repo.catalog.report_bad([name.hex() for name in names], 'test')
    with expect_logs('was listed as bad', 2):
        repo.create([DATA], blob_id='again', **SIZES)
    assert listed(repo) == []
    assert repo.verify().is_sound


def test_an_import_overwrites_it_unread(repo, image, expect_logs):
    names = [chunk_at(repo, index).hex() for index in range(3)]
    repo.catalog.report_bad(names, 'test')
    with expect_logs('was listed as bad', 3):
        repo.create([DATA], blob_id='again', **SIZES)
    assert listed(repo) == []


def test_a_writer_that_may_not_overwrite_leaves_it_to_others(
    repo, disk, expect_logs, monkeypatch
):
    """As agents, whose rights to the store need not reach so far."""
    name, lost = chunk_at(repo, 0), chunk_at(repo, 1)
    path_of(repo, lost).unlink()
    repo.catalog.report_bad([name.hex(), lost.hex()], 'test')
    denied = []

    def refuse(name, *parts):
        denied.append(name)
        raise exceptions.StoreDenied('made for this test')

    monkeypatch.setattr(repo.store, 'replace', refuse)
    chunks = {5: DATA[:CHUNK], 4: DATA[CHUNK : 2 * CHUNK]}
    with expect_logs('left to others'):
        assert commit(repo, disk, chunks) == ['known', 'stored']
    assert denied == [name]
    assert listed(repo) == sorted([name.hex(), lost.hex()])
    assert repo.verify().is_sound


def test_it_stays_listed_until_the_store_is_synced(
    repo, disk, expect_logs, monkeypatch
):
    name = chunk_at(repo, 0).hex()
    repo.catalog.report_bad([name], 'test')

    def fail(names):
        raise exceptions.StoreError('made for this test')

    with monkeypatch.context() as patch:
        patch.setattr(repo.store, 'sync', fail)
        with expect_logs('was listed as bad'):
            with pytest.raises(exceptions.StoreError):
                commit(repo, disk, {5: DATA[:CHUNK]})
    assert listed(repo) == [name]
    # Dead after the sync and before the publish: it is gone, and sound.
    with expect_logs('was listed as bad'):
        commit(repo, disk, {5: DATA[:CHUNK]}, publishes=False)
    assert listed(repo) == []


def test_a_catalog_that_is_away_leaves_it_listed(
    repo, disk, catalog, expect_logs
):
    name = chunk_at(repo, 0).hex()
    catalog.report_bad([name], 'test')
    catalog.failing = 'forget_bad'
    with expect_logs('was listed as bad'), expect_logs('stay listed'):
        commit(repo, disk, {5: DATA[:CHUNK]})
    assert listed(repo) == [name]


def test_an_empty_list_costs_no_question(repo, disk, catalog):
    commit(repo, disk, {5: DATA[:CHUNK], 1: b'x' * CHUNK})
    assert catalog.calls.count('begin_session') == 1
    assert not {'bad_digests', 'report_bad', 'forget_bad'} & {*catalog.calls}


def test_a_short_list_costs_no_question_either(repo, disk, catalog):
    catalog.report_bad([f'{number:064x}' for number in range(9)], 'test')
    commit(repo, disk, {5: DATA[:CHUNK]})
    assert 'bad_digests' not in catalog.calls


def test_a_list_of_more_than_a_page_is_asked_of_each_object(
    repo, disk, catalog, expect_logs
):
    catalog.report_bad([f'{number:064x}' for number in range(1000)], 'test')
    name = chunk_at(repo, 0)
    damage(repo, name)
    catalog.report_bad([name.hex()], 'test')
    with expect_logs('was listed as bad'):
        commit(repo, disk, {5: DATA[:CHUNK], 4: DATA[:CHUNK]})
    assert catalog.bad_digests([name.hex()]) == []
    assert len(listed(repo)) == 1000
    repo.catalog = catalog._inner
    assert repo.verify().is_sound


def test_what_is_reported_later_hits_the_new_version_like_the_old_ones(
    repo, disk
):
    name = chunk_at(repo, 0)
    head = repo.catalog.version('disk')
    parent = repo.manifest(head.root)
    with repo.commit(disk, parent, size_bytes=head.size_bytes) as target:
        damage(repo, name)
        repo.catalog.report_bad([name.hex()], 'test')
        assert target.put(5, DATA[:CHUNK]) == 'known'
        repo.catalog.publish(
            'disk',
            epoch=disk.epoch,
            parent=1,
            commit_id='c',
            root=target.finish(),
            size_bytes=head.size_bytes,
            session_id=target.session_id,
            secret='secret',
        )
    assert listed(repo) == [name.hex()]
    found = [
        (p.blob_id, p.version, p.offset // CHUNK)
        for p in repo.verify(options=LOOK).problems()
    ]
    assert found == [
        ('disk', 1, 0),
        ('disk', 2, 0),
        ('disk', 2, 5),
        ('image', 1, 0),
    ]
