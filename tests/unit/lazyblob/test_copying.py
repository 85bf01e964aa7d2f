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
import dataclasses
import itertools
import os
import random
import signal
import traceback

import pytest

from lazyblob import copy_plan
from lazyblob import copying
from lazyblob import digest
from lazyblob import exceptions
from lazyblob import patience
from lazyblob import repository
from lazyblob.catalog import api
from lazyblob.chunk_store import objects

CHUNK = 4096
DIGESTS = digest.keys(digest.REPOSITORY_SCOPE)
CHUNKS = 300  # more than a leaf has
DATA = b''.join(
    bytes(CHUNK) if index % 3 == 2 else random.Random(index).randbytes(CHUNK)
    for index in range(CHUNKS)
)
SMALL = DATA[: 5 * CHUNK] + b'tail'


class Watched:
    """A store or a catalog that asks before each call whether it may.

    :param before: called with the name of what is called
    """

    def __init__(self, inner, before):
        self._inner, self._before = inner, before

    def __getattr__(self, name):
        found = getattr(self._inner, name)
        if not callable(found):
            return found

        def call(*arguments, **more):
            self._before(name)
            return found(*arguments, **more)

        return call


def watch(repo, before, catalog=True):
    repo.store = Watched(repo.store, before)
    if catalog:
        repo.catalog = Watched(repo.catalog, before)


def break_off(source, target, version):
    """A copy that ends before its sync."""

    def die(name):
        if name == 'sync':
            raise exceptions.TemporaryStoreError('made for this test')

    store = target.store
    watch(target, die, catalog=False)
    with pytest.raises(exceptions.TemporaryStoreError):
        copy(source, target, version)
    target.store = store


def make(folder, **more):
    made = repository.initialise(*repository.urls_of(folder.as_uri()), **more)
    made.folder = folder
    return made


@pytest.fixture
def source(tmp_path):
    made = make(tmp_path / 'source')
    yield made
    made.close()


@pytest.fixture
def target(tmp_path):
    made = make(tmp_path / 'target')
    yield made
    made.close()


@pytest.fixture
def small(source):
    return create(source, SMALL)


def create(repo, data=DATA, blob_id='image', name='debian', **more):
    return repo.create(
        [data], blob_id=blob_id, name=name, chunk_size_bytes=CHUNK, **more
    )


def write(repo, blob_id='image', index=1, seed=9999, **more):
    """Another version: one chunk of it is another one."""
    blob = repo.catalog.get(blob_id)
    head = repo.catalog.version(blob_id)
    parent = repo.manifest(head.root, blob.scope)
    size_bytes = more.get('size_bytes', head.size_bytes)
    with repo.commit(blob, parent, size_bytes=size_bytes) as commit:
        commit.put(index, random.Random(seed).randbytes(CHUNK))
        return repo.catalog.publish(
            blob_id,
            epoch=blob.epoch,
            parent=head.number,
            commit_id=f'commit {head.number}',
            root=commit.finish(),
            size_bytes=size_bytes,
            session_id=commit.session_id,
        )


def copy(source, target, version, blob=None, **more):
    blob = blob or source.catalog.get(version.blob_id)
    return copying.Copy(source, target, version, blob, **more).run()


def whole(repo, blob_id, number=None):
    return b''.join(repo.open(blob_id, number).stream())


def files(repo):
    """Every object, as it lies."""
    return {
        name: repo.store.get(name, 1 << 20) for name, _ in repo.store.list()
    }


def path_of(repo, name):
    return repo.folder / 'chunks' / objects.key(name)


def is_clean(repo):
    """Whatever is there is whole; and so are the books."""
    for version in repo.catalog.list_versions():
        assert repo.verify(version.blob_id, version.number).is_sound
    assert repo.account().missing_objects == 0
    return True


class TestCopy:
    def test_only_what_is_missing_travels_and_as_it_lies(self, source, target):
        first = create(source)
        done = copy(source, target, first)
        assert files(target) == files(source)
        assert done.copied_objects == len(files(source))
        assert done.copied_bytes == sum(map(len, files(source).values()))
        assert whole(target, 'image') == DATA
        assert target.catalog.find('debian').id == 'image'
        # A chunk, its leaf, the root node and the descriptor.
        done = copy(source, target, write(source))
        assert (done.copied_objects, done.found_objects) == (4, 0)
        assert files(target) == files(source)
        assert is_clean(target)
        assert target.catalog.sessions() == []

    def test_what_is_there_from_elsewhere_does_not_travel(
        self, source, target, small
    ):
        create(target, SMALL, blob_id='other', name='other')
        done = copy(source, target, small)
        assert (done.copied_objects, done.copied_bytes) == (0, 0)
        assert done.found_objects == 4 + 1 + 1 + 1

    def test_a_copy_that_is_there_is_not_made_again(
        self, source, target, small
    ):
        copy(source, target, small)
        called = []
        watch(target, called.append)
        done = copy(source, target, small)
        assert not done.is_new
        assert done.version.root == small.root
        assert set(called) <= {'repository', 'received'}

    def test_a_clone_brings_a_row(self, source, target, small):
        clone = source.clone('image', blob_id='clone', name='web')
        copy(source, target, small)
        assert copy(source, target, clone).copied_objects == 0
        assert whole(target, 'clone') == SMALL

    def test_what_a_version_there_reaches_is_not_asked_for(
        self, source, target
    ):
        copy(source, target, create(source))
        called = []
        watch(target, called.append)
        copy(source, target, write(source))
        assert called.count('has') == 4

    def test_a_disk_that_grew_is_what_it_was_and_more(self, source, target):
        copy(source, target, create(source))
        size_bytes = 256 * 256 * 2 * CHUNK  # two levels more
        grown = write(source, index=CHUNKS + 9, size_bytes=size_bytes)
        done = copy(source, target, grown)
        assert done.copied_objects < 10
        assert is_clean(target)
        reader = target.open('image', 2)
        assert reader.read(0, len(DATA)) == DATA

    @pytest.mark.parametrize('data', [b'', bytes(5 * CHUNK), b'x'])
    def test_small_and_empty_disks_are_disks(self, source, target, data):
        copy(source, target, create(source, data))
        assert whole(target, 'image') == data
        assert is_clean(target)

    def test_order_of_writes(self, source, target):
        """Chunks, nodes from the leaves, descriptor, sync, row."""
        version = create(source)
        tree = source.tree(version.root)
        manifest = source.manifest(version.root)
        leaves = {manifest.encode(DIGESTS).nodes[n][0] for n in (0, 1)}
        ranks = {name: 0 for _, name in manifest.chunks()}
        ranks |= dict.fromkeys(leaves, 1)
        ranks |= {tree.descriptor.tree: 2, bytes.fromhex(version.root): 3}
        put, order = target.store.put, []
        target.store.put = lambda name, *parts: (
            order.append(ranks[name]),
            put(name, *parts),
        )
        sync = target.store.sync
        target.store.sync = lambda names: (
            order.append(sorted(map(ranks.__getitem__, names))),
            sync(names),
        )
        receive = target.catalog.receive
        target.catalog.receive = lambda *arguments, **more: (
            order.append('row'),
            receive(*arguments, **more),
        )[1]
        copy(source, target, version)
        assert order[-1] == 'row'
        assert order[-2] == order[:-2] == sorted(order[:-2])

    def test_the_session_stands_from_before_the_first_question(
        self, source, target, small
    ):
        seen = []
        catalog = target.catalog
        watch(
            target,
            lambda name: seen.append((name, len(catalog.sessions()))),
            catalog=False,
        )
        copy(source, target, small)
        assert {'has', 'put', 'sync'} <= {name for name, _ in seen}
        assert {count for _, count in seen} == {1}
        assert catalog.sessions() == []

    def test_without_its_session_it_publishes_nothing(
        self, source, target, small
    ):
        catalog = target.catalog

        def end(name):
            if name == 'sync':
                for session in catalog.sessions():
                    catalog.end_session(session.id)

        watch(target, end, catalog=False)
        with pytest.raises(exceptions.Conflict, match='session'):
            copy(source, target, small)
        assert catalog.list_versions() == []

    def test_progress_ends_with_the_disk(self, source, target, small):
        told = []
        copy(source, target, small, progress=told.append)
        assert told == sorted(told)
        assert told[-1] == len(SMALL)

    def test_a_repository_is_not_copied_into_itself(self, source):
        with pytest.raises(exceptions.Conflict, match='clone'):
            copying.check(source, source)


class TestPresence:
    """That a node is there says nothing of what is below it."""

    def test_a_node_whose_chunk_was_lost_is_not_believed(self, source, target):
        """As a loss of power leaves it that kept what was put later."""
        version = create(source)

        break_off(source, target, version)
        assert target.store.has(bytes.fromhex(version.root))
        lost = source.manifest(version.root).get(0)
        path_of(target, lost).unlink()
        done = copy(source, target, version)
        assert done.copied_objects == 1
        assert is_clean(target)

    def test_a_base_that_is_deleted_meanwhile_is_not_believed(
        self, source, target
    ):
        """Its chunks may go as soon as no session is open."""
        first = create(source)
        copy(source, target, first)
        second = write(source)

        def collect(name):
            # Between the first look at the target and the session.
            if name == 'begin_session' and target.catalog.list_versions():
                delete(target)

        watch(target, collect)
        copy(source, target, second)
        assert is_clean(target)
        assert whole(target, 'image') == whole(source, 'image')

    def test_a_damaged_base_is_done_without(self, source, target):
        first = create(source)
        copy(source, target, first)
        node = target.tree(first.root).descriptor.tree
        path_of(target, node).unlink()
        copy(source, target, write(source))
        assert target.verify('image', 2).is_sound


def delete(repo):
    """The blob goes, and all chunks with it: the nodes are not yet taken."""
    version = repo.catalog.list_versions()[0]
    names = [name for _, name in repo.manifest(version.root).chunks()]
    repo.catalog._inner.delete('image')
    # Nothing of it ever was, to a collector that is through.
    forget(repo)
    for name in names:
        path_of(repo, name).unlink()


def forget(repo):
    import sqlalchemy as sa

    from lazyblob.catalog import models

    database = repo.catalog._inner._database
    database.write(lambda session: session.execute(sa.delete(models.Blob)))


# Each test waits for its child; no thread of ours is alive then.
@pytest.mark.filterwarnings('ignore:.*fork')
class TestCrash:
    """In the target; of the source nothing is changed."""

    @pytest.fixture(autouse=True)
    def hurry(self, monkeypatch):
        monkeypatch.setattr(patience, 'PAUSES_SECONDS', (0,))

    def calls(self, source, tmp_path):
        """How many calls a copy is."""
        repo = make(tmp_path / 'counted')
        called = []
        watch(repo, called.append)
        for version in source.catalog.list_versions():
            copy(source, repo, version, threads=2)
        repo.close()
        return len(called)

    def test_killed_before_any_call_it_leaves_nothing_wrong(
        self, source, small, tmp_path
    ):
        write(source)
        count = self.calls(source, tmp_path)
        assert count > 20
        killed = 0
        for nth in range(1, count + 1):
            repo = make(tmp_path / f'target-{nth}')
            killed += dies(source.folder, repo.folder, nth)
            assert is_clean(repo)
            for version in source.catalog.list_versions():
                copy(source, repo, version)
            assert files(repo) == files(source)
            assert repo.account().unreferenced_objects == 0
            assert is_clean(repo)
            repo.close()
        assert killed >= count - 2, 'it was not killed: proves nothing'

    @pytest.mark.expect_logs('was not ended|Trying again')
    @pytest.mark.parametrize(
        'failure',
        [
            exceptions.StoreFull,
            exceptions.TemporaryStoreError,
            exceptions.CatalogUnavailable,
        ],
    )
    def test_whichever_call_fails_it_leaves_nothing_wrong(
        self, source, small, tmp_path, failure
    ):
        write(source)
        versions = source.catalog.list_versions()
        count = self.calls(source, tmp_path)
        for nth in range(1, count + 1):
            repo = make(tmp_path / f'target-{nth}')
            store, catalog = repo.store, repo.catalog
            watch(repo, fails(nth, failure))
            try:
                for version in versions:
                    copy(source, repo, version, threads=2)
            except failure:
                pass
            repo.store, repo.catalog = store, catalog
            assert is_clean(repo)
            for version in versions:
                copy(source, repo, version)
            assert files(repo) == files(source)
            assert is_clean(repo)
            repo.close()

    def test_what_was_put_is_not_put_again(self, source, target):
        version = create(source)
        puts = []

        def fail(name):
            puts.extend([name] * (name == 'put'))
            if len(puts) > 100:
                raise exceptions.StoreFull('made for this test')

        store = target.store
        watch(target, fail, catalog=False)
        with pytest.raises(exceptions.StoreFull):
            copy(source, target, version)
        target.store = store
        there = len(files(target))
        assert there >= 90
        done = copy(source, target, version)
        assert done.found_objects == there
        assert done.copied_objects == len(files(source)) - there


def fails(nth, failure):
    """The n-th call does, before anything is done."""
    calls = itertools.count(1)

    def count(_name):
        if next(calls) == nth:
            raise failure('made for this test')

    return count


def dies(source, target, nth):
    """A process copies everything and is killed before its n-th call."""
    child = os.fork()
    if not child:
        try:
            left = [nth]

            def count(name):
                left[0] -= 1
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)

            here = repository.Repository.url(source.as_uri())
            there = repository.Repository.url(target.as_uri())
            watch(there, count)
            for version in here.catalog.list_versions():
                copy(here, there, version, threads=2)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL)
    return status == signal.SIGKILL


class TestDamage:
    def test_damage_stays_where_it_is_and_others_go_on(self, source, target):
        first = create(source)
        second = write(source)
        name = source.manifest(first.root).get(1)  # of the first alone
        path = path_of(source, name)
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        with pytest.raises(exceptions.ChunkCorrupt) as caught:
            copy(source, target, first)
        for told in ('version 1 of blob "image"', name.hex(), 'verify'):
            assert told in str(caught.value)
        copy(source, target, second)
        assert not target.store.has(name)
        assert is_clean(target)
        assert target.catalog.sessions() == []

    def test_a_version_that_is_deleted_meanwhile_is_told_as_that(
        self, source, target, small
    ):
        name = source.manifest(small.root).get(1)
        wanted = copying.Copy(
            source, target, small, source.catalog.get('image')
        )
        source.delete('image')
        path_of(source, name).unlink()
        with pytest.raises(exceptions.NotFound, match='deleted meanwhile'):
            wanted.run()

    def test_an_object_cut_short_there_is_put_again(
        self, source, target, small
    ):
        break_off(source, target, small)
        os.truncate(path_of(target, source.manifest(small.root).get(0)), 40)
        copy(source, target, small)
        assert is_clean(target)

    def test_what_is_listed_as_bad_there_is_overwritten(
        self, source, target, small
    ):
        copy(source, target, small)
        name = source.manifest(small.root).get(0)
        path = path_of(target, name)
        path.write_bytes(path.read_bytes()[:-1] + b'?')
        target.catalog.report_bad([name.hex()], 'test')
        done = copy(source, target, write(source, index=1))
        assert done.version.number == 2
        assert target.catalog.bad_digests() == []
        assert is_clean(target)


class TestScopes:
    @pytest.fixture
    def apart(self, tmp_path):
        """A repository that shares nothing between projects."""
        made = make(tmp_path / 'apart', dedupe_scope='project')
        yield made
        made.close()

    def test_another_scope_gets_digests_of_its_own(self, source, apart):
        first = create(source, project_id='p1')
        second = write(source)
        size_bytes = len(DATA) + 500 * CHUNK
        third = write(
            source, index=CHUNKS + 2, seed=7777, size_bytes=size_bytes
        )
        done = copy(source, apart, first)
        assert done.version.root != first.root
        assert copy(source, apart, second).copied_objects == 1
        assert copy(source, apart, third).copied_objects == 1
        assert not copy(source, apart, third).is_new
        assert not set(files(source)) & set(files(apart))
        for version in (first, second, third):
            number = version.number
            expected = whole(source, 'image', number)
            assert whole(apart, 'image', number) == expected
        assert is_clean(apart)
        assert apart.catalog.get('image').scope == 'project:p1'

    def test_back_again_everything_is_as_it_was(self, source, apart, target):
        version = create(source, project_id='p1')
        there = copy(source, apart, version).version
        copy(apart, target, there)
        assert files(target) == files(source)

    def test_one_project_in_two_such_repositories_shares(
        self, apart, tmp_path
    ):
        other = make(tmp_path / 'other', dedupe_scope='project')
        version = create(apart, project_id='p1')
        copy(apart, other, version)
        assert files(other) == files(apart)
        other.close()

    def test_a_hole_that_came_later_is_a_hole(self, source, apart):
        create(source, project_id='p1')
        blob = source.catalog.get('image')
        parent = source.manifest(source.catalog.version('image').root)
        with source.commit(blob, parent, size_bytes=len(DATA)) as commit:
            commit.put(0, bytes(CHUNK))
            source.catalog.publish(
                'image',
                epoch=1,
                parent=1,
                commit_id='c',
                root=commit.finish(),
                size_bytes=len(DATA),
                session_id=commit.session_id,
            )
        for version in source.catalog.versions('image'):
            copy(source, apart, version)
        assert whole(apart, 'image', 2) == bytes(CHUNK) + DATA[CHUNK:]


class TestHistory:
    def test_numbers_and_times_and_origins_stay(self, source, target):
        create(source)
        write(source)
        write(source, index=2)
        clone = source.clone('image', 2, blob_id='clone', name='web')
        source.catalog.delete_version('image', 1)
        versions = source.catalog.versions('image')
        assert [version.number for version in versions] == [2, 3]
        for version in [*versions, clone]:
            copy(source, target, version)
        assert target.catalog.versions('image') == versions
        assert target.catalog.version('clone') == clone
        for blob_id in ('image', 'clone'):
            blob = target.catalog.get(blob_id)
            assert blob == source.catalog.get(blob_id)
        # What is written there goes on counting.
        assert write(target).number == 4

    def test_an_older_version_may_come_later(self, source, target):
        first = create(source)
        second = write(source)
        copy(source, target, second)
        copy(source, target, first)
        assert [v.number for v in target.catalog.versions('image')] == [1, 2]
        assert target.catalog.version('image').number == 2
        assert is_clean(target)

    def test_another_name_is_another_blob(self, source, target, small):
        blob = source.catalog.get('image')
        blob_id = copying.copied_id(source, 'image', 'other')
        assert blob_id == copying.copied_id(source, 'image', 'other')
        renamed = dataclasses.replace(blob, id=blob_id, name='other')
        copy(source, target, small)
        copy(source, target, small, renamed)
        assert target.catalog.find('other').id == blob_id
        assert whole(target, blob_id) == SMALL

    def test_what_stands_against_it_is_told_before_anything_travels(
        self, source, target, small
    ):
        blob = source.catalog.get('image')
        create(target, b'x', blob_id='stranger', name='debian')
        create(target, b'x', blob_id='taken', name='')
        copy(source, target, small, dataclasses.replace(blob, name='mine'))
        target.catalog.claim('image', 'secret')
        newer = write(source)
        create(target, b'x', blob_id='gone', name='')
        target.delete('gone')
        before = files(target)
        for changed, reason in (
            ({'id': 'new'}, 'name "debian" .* used'),
            ({'id': 'taken', 'created_at': '2001-01-01T00:00:00Z'}, 'another'),
            ({'id': 'gone'}, 'deleted'),
            ({}, 'attached'),
        ):
            wanted = dataclasses.replace(blob, **changed)
            with pytest.raises(exceptions.Conflict, match=reason):
                copy(source, target, newer, wanted)
        assert files(target) == before

    def test_a_number_that_means_something_else_is_refused(
        self, source, target, small
    ):
        copy(source, target, small)
        write(source)
        other = write(target, seed=7)
        source_version = source.catalog.version('image')
        assert source_version.number == other.number
        copied = dataclasses.replace(source_version, commit_id='another')
        with pytest.raises(exceptions.Conflict, match='another one there'):
            copy(source, target, copied)
        # Whoever gives one commit id to two contents is found out, too.
        with pytest.raises(exceptions.Conflict, match='another content'):
            copy(source, target, source_version)


class TestPlan:
    def test_a_plan_tells_exactly_what_travels(self, source, target):
        create(source)
        write(source)
        source.clone('image', 1, blob_id='clone', name='web')
        versions = source.catalog.list_versions()
        before = files(target)
        with copy_plan.Plan(source) as plan:
            for version in versions:
                blob = source.catalog.get(version.blob_id)
                plan.add(copying.Copy(source, target, version, blob))
            told = plan.objects, plan.size_bytes()
        assert files(target) == before
        assert target.catalog.list_versions() == []
        done = [copy(source, target, version) for version in versions]
        assert told == (
            sum(result.copied_objects for result in done),
            sum(result.copied_bytes for result in done),
        )
        with copy_plan.Plan(source) as plan:
            for version in versions:
                blob = source.catalog.get(version.blob_id)
                assert (
                    plan.add(copying.Copy(source, target, version, blob)) == 0
                )
            assert plan.size_bytes() == 0


def test_a_catalog_behind_a_conductor_takes_in_nothing():
    class Remote(api.Catalog):
        """Only what every catalog has."""

    Remote.__abstractmethods__ = frozenset()
    with pytest.raises(exceptions.InvalidConfiguration, match='conductor'):
        Remote().receive(None, None, session_id='')
