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
"""Verifying: what is wrong is found, told with what it hits, and listed."""

import collections
import random
import shutil

import pytest

from lazyblob import exceptions
from lazyblob import pacing
from lazyblob import repository
from lazyblob import verifying
from lazyblob.catalog import api
from lazyblob.chunk_store import objects

CHUNK = 4096
SIZES = {'chunk_size_bytes': CHUNK}
LOOK = verifying.Options(reads_data=False)


def some_data(chunks, seed=1, holes=()):
    draw = random.Random(seed)
    return b''.join(
        bytes(CHUNK) if index in holes else draw.randbytes(CHUNK)
        for index in range(chunks)
    )


DATA = some_data(12, holes=(3, 4)) + b'tail'


class Counting:
    """A store that counts what it is asked, and may cost more to ask."""

    def __init__(self, inner, *, is_remote):
        self._inner = inner
        self.is_remote = is_remote
        self.calls = collections.Counter()

    def __getattr__(self, name):
        inner = getattr(self._inner, name)
        if not callable(inner):
            return inner

        def call(*arguments):
            what = arguments[0] if arguments else b''
            self.calls[name, what if isinstance(what, bytes) else b''] += 1
            return inner(*arguments)

        return call

    def count(self, name):
        return sum(n for (which, _), n in self.calls.items() if which == name)


@pytest.fixture
def image(repo):
    return repo.create([DATA], blob_id='image', name='debian', **SIZES)


@pytest.fixture(params=['files', 'requests'])
def store(request, repo):
    """Both ways to look: asking for each, and the listing."""
    repo.store = Counting(repo.store, is_remote=request.param == 'requests')
    return repo.store


def path_of(repo, name):
    return repo.store._root / objects.key(name)


def flip(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.chmod(0o600)
    path.write_bytes(data)


def damage(repo, name):
    """One bit, which no length shows."""
    path = path_of(repo, name)
    flip(path, 8 * path.stat().st_size - 1)


def chunk_at(repo, index, blob_id='image'):
    return repo.manifest(repo.catalog.version(blob_id).root).get(index)


def listed(repo):
    return [row.digest for row in repo.catalog.bad_digests()]


def told(report):
    return [
        (p.blob_id, p.version, p.kind, p.offset, p.length_bytes)
        for p in report.problems()
    ]


class TestSound:
    def test_everything_of_every_version_is_read(self, repo, image):
        repo.create([some_data(3, seed=2)], blob_id='other', **SIZES)
        report = repo.verify()
        assert report.is_sound
        assert report.version_count == 2
        assert report.chunk_count == 11 + 3
        assert report.read_bytes == 14 * CHUNK
        # Two leaves and two descriptors.
        assert report.object_count == 14 + 4 == len(dict(repo.store.list()))
        assert report.unreferenced_objects == 0
        assert told(report) == []

    def test_one_version_is_its_own_affair(self, repo, image):
        repo.create([some_data(3, seed=2)], blob_id='other', **SIZES)
        damage(repo, chunk_at(repo, 0))
        report = repo.verify('other')
        assert report.is_sound
        assert (report.version_count, report.chunk_count) == (1, 3)
        assert report.unreferenced_objects is None
        assert not repo.verify('image').is_sound

    def test_an_empty_repository_is_sound(self, repo):
        assert repo.verify().is_sound

    def test_a_disk_of_nothing_but_a_hole_is_sound(self, repo):
        repo.create([bytes(9 * CHUNK)], blob_id='hole', **SIZES)
        assert repo.verify().chunk_count == 0

    def test_a_look_reads_no_chunk(self, repo, image, store):
        report = repo.verify(options=LOOK)
        assert report.is_sound
        assert report.read_bytes == 0
        assert store.count('get') == 2
        assert store.count('list') == 1
        assert store.count('has') == (0 if store.is_remote else 11)

    def test_each_object_is_read_once_for_all_versions(
        self, repo, image, store
    ):
        """Clones, equal chunks, and a commit that changes one leaf."""
        data = some_data(300, seed=3)
        repo.create([data], blob_id='large', **SIZES)
        for number in range(5):
            repo.clone('large', blob_id=f'clone-{number}')
        repo.create([data[: 7 * CHUNK] * 2], blob_id='parts', **SIZES)
        store.calls.clear()
        report = repo.verify()
        assert report.version_count == 8
        gets = {
            name: count
            for (which, name), count in store.calls.items()
            if which == 'get'
        }
        assert set(gets.values()) == {1}
        assert len(gets) == report.object_count

    def test_what_two_projects_have_is_verified_in_its_scope(self, tmp_path):
        urls = repository.urls_of((tmp_path / 'scoped').as_uri())
        made = repository.initialise(*urls, dedupe_scope='project')
        for project in ('p1', 'p2'):
            made.create([DATA], blob_id=project, project_id=project, **SIZES)
        report = made.verify()
        assert report.is_sound
        assert report.chunk_count == 22
        made.close()


class TestUnreferenced:
    def test_leavings_are_counted_and_no_fault(self, repo, image):
        """Of a writer that died before its publish."""
        blob = repo.catalog.get('image')
        with repo.commit(blob, None, size_bytes=CHUNK) as target:
            target.put(0, b'x' * CHUNK)
            root = target.finish()
        for options in (LOOK, verifying.Options()):
            report = repo.verify(options=options)
            assert report.is_sound
            assert report.unreferenced_objects == 3
            names = dict(report.unreferenced())
            assert bytes.fromhex(root) in names
            assert sum(names.values()) == report.unreferenced_bytes > 0

    def test_what_was_put_after_the_listing_is_not_missing(
        self, repo, image, store
    ):
        repo.store.list = lambda: iter(())
        report = repo.verify(options=LOOK)
        assert report.is_sound
        assert report.unreferenced_objects == 0


class TestDamage:
    def test_lost_and_damaged_chunks_are_told_with_their_ranges(
        self, repo, image
    ):
        damage(repo, chunk_at(repo, 1))
        path_of(repo, chunk_at(repo, 12)).unlink()
        report = repo.verify()
        assert told(report) == [
            ('image', 1, 'chunk', CHUNK, CHUNK),
            # The last one ends with the disk.
            ('image', 1, 'chunk', 12 * CHUNK, 4),
        ]
        first, second = report.problems()
        assert 'checksum' in first.reason
        assert 'not there' in second.reason
        assert first.digest == chunk_at(repo, 1).hex()

    def test_every_version_that_it_hits_is_told(self, repo, image):
        repo.clone('image', blob_id='clone')
        repo.create([DATA[CHUNK:]], blob_id='shifted', **SIZES)
        damage(repo, chunk_at(repo, 1))
        assert told(repo.verify()) == [
            ('clone', 1, 'chunk', CHUNK, CHUNK),
            ('image', 1, 'chunk', CHUNK, CHUNK),
            ('shifted', 1, 'chunk', 0, CHUNK),
        ]

    def test_a_lost_node_hits_all_that_is_below_it(self, repo, image):
        """And nothing of its neighbours."""
        data = some_data(600, seed=4)
        repo.create([data], blob_id='large', **SIZES)
        tree = repo.tree(repo.catalog.version('large').root)
        table = tree.table(tree.descriptor.tree, 1, 0)
        span = 256 * CHUNK
        path_of(repo, table[32:64]).unlink()
        damage(repo, table[64:96])
        for options in (LOOK, verifying.Options()):
            report = repo.verify(options=options)
            assert told(report) == [
                ('large', 1, 'node', span, span),
                ('large', 1, 'node', 2 * span, len(data) - 2 * span),
            ]

    @pytest.mark.parametrize('is_lost', [False, True])
    def test_a_bad_descriptor_hits_the_whole_disk(self, repo, image, is_lost):
        repo.clone('image', blob_id='clone')
        root = bytes.fromhex(image.root)
        if is_lost:
            path_of(repo, root).unlink()
        else:
            damage(repo, root)
        report = repo.verify(options=LOOK)
        assert told(report) == [
            ('clone', 1, 'descriptor', 0, len(DATA)),
            ('image', 1, 'descriptor', 0, len(DATA)),
        ]

    def test_a_look_finds_what_is_lost_or_cut_short(self, repo, image, store):
        path_of(repo, chunk_at(repo, 0)).unlink()
        path = path_of(repo, chunk_at(repo, 2))
        path.chmod(0o600)
        # A loss of power: no byte, or, where each is looked at, some.
        keeps = 0 if store.is_remote else 100
        path.write_bytes(path.read_bytes()[:keeps])
        report = repo.verify(options=LOOK)
        assert [p.offset // CHUNK for p in report.problems()] == [0, 2]

    def test_a_valid_object_under_a_wrong_name_is_found(self, repo, image):
        shutil.copy(
            path_of(repo, chunk_at(repo, 0)), path_of(repo, chunk_at(repo, 1))
        )
        assert [p.offset for p in repo.verify().problems()] == [CHUNK]

    def test_what_the_disk_cannot_read_is_a_fault(self, repo, image):
        """EIO below the store; the rest is looked at all the same."""
        name = chunk_at(repo, 2)
        get = repo.store.get

        def failing(asked, size_bytes_max):
            if asked == name:
                raise exceptions.StoreError('Input/output error')
            return get(asked, size_bytes_max)

        repo.store.get = failing
        report = repo.verify()
        assert [p.reason for p in report.problems()] == ['Input/output error']
        assert listed(repo) == [name.hex()]

    @pytest.mark.parametrize(
        'kind', [exceptions.TemporaryStoreError, exceptions.StoreDenied]
    )
    def test_a_store_that_is_away_is_no_damage(self, repo, image, kind):
        def failing(asked, size_bytes_max):
            raise kind('made for this test')

        repo.store.get = failing
        with pytest.raises(kind):
            repo.verify()
        assert listed(repo) == []

    def test_what_was_deleted_meanwhile_is_no_fault(
        self, repo, image, monkeypatch
    ):
        """A collector takes what a version needed that is gone."""
        root = bytes.fromhex(image.root)
        get = repo.store.get

        def collected(asked, size_bytes_max):
            if asked == root:
                repo.delete('image')
                path_of(repo, root).unlink()
            return get(asked, size_bytes_max)

        monkeypatch.setattr(repo.store, 'get', collected)
        assert repo.verify().is_sound


class TestFlippedBits:
    """No bit of any object can be another without being found."""

    def some_bits(self, size_bytes, *, small):
        if size_bytes <= small:
            return [8 * at + at % 8 for at in range(size_bytes)]
        draw = random.Random(size_bytes)
        head = [8 * at + at % 8 for at in range(48)]
        return head + [draw.randrange(8 * size_bytes) for _ in range(48)]

    def test_a_flipped_bit_anywhere_is_found_and_told_with_what_it_hits(
        self, repo
    ):
        """Every byte of small objects of each kind, many of large ones."""
        noise = random.Random(8).randbytes(CHUNK)
        plain = b'text'.ljust(CHUNK, b'.')  # Compressed to next to nothing.
        repo.create([noise + plain], blob_id='image', **SIZES)
        repo.clone('image', blob_id='clone')
        version = repo.catalog.version('image')
        tree = repo.tree(version.root).descriptor.tree
        whole = (0, 2 * CHUNK)
        expected = {
            bytes.fromhex(version.root): ('descriptor', *whole),
            tree: ('node', *whole),
            chunk_at(repo, 0): ('chunk', 0, CHUNK),
            chunk_at(repo, 1): ('chunk', CHUNK, CHUNK),
        }
        assert set(dict(repo.store.list())) == set(expected)
        flipped = 0
        for name, hit in expected.items():
            path = path_of(repo, name)
            right = path.read_bytes()
            for bit in self.some_bits(len(right), small=200):
                flip(path, bit)
                assert told(repo.verify()) == [
                    ('clone', 1, *hit),
                    ('image', 1, *hit),
                ], bit
                with pytest.raises(exceptions.ChunkCorrupt):
                    list(repo.open('image').stream())
                path.write_bytes(right)
                flipped += 1
        assert flipped > 300
        assert repo.verify().is_sound
        assert listed(repo) == []

    def test_a_look_that_follows_finds_it_again_by_the_list(self, repo, image):
        """What was found once is read by each later run, until it is sound."""
        damage(repo, chunk_at(repo, 1))
        assert repo.verify(options=LOOK).is_sound
        assert not repo.verify().is_sound
        assert not repo.verify(options=LOOK).is_sound


class TestList:
    def test_what_was_found_is_listed_and_what_is_sound_is_forgotten(
        self, repo, image
    ):
        name, other = chunk_at(repo, 1), chunk_at(repo, 2)
        path = path_of(repo, name)
        right = path.read_bytes()
        damage(repo, name)
        repo.catalog.report_bad([other.hex(), 'ff' * 32], 'somebody')
        repo.verify(options=verifying.Options(reporter='night'))
        rows = {r.digest: r.reporter for r in repo.catalog.bad_digests()}
        # What no version reaches was not looked at.
        assert rows == {name.hex(): 'night', 'ff' * 32: 'somebody'}
        path.write_bytes(right)
        assert repo.verify(options=LOOK).is_sound
        assert listed(repo) == ['ff' * 32]

    def test_an_interrupted_run_has_listed_what_it_found(
        self, repo, image, monkeypatch
    ):
        damage(repo, chunk_at(repo, 0))
        lost = chunk_at(repo, 11)
        get = repo.store.get

        def stopped(asked, size_bytes_max):
            if asked == lost:
                raise KeyboardInterrupt
            return get(asked, size_bytes_max)

        monkeypatch.setattr(repo.store, 'get', stopped)
        with pytest.raises(KeyboardInterrupt):
            repo.verify(options=verifying.Options(threads=1))
        assert listed(repo) == [chunk_at(repo, 0).hex()]


class TestParts:
    def test_as_many_runs_as_there_are_parts_read_everything_once(
        self, repo, image, store
    ):
        reads = collections.Counter()
        for number in range(1, 4):
            store.calls.clear()
            subset = verifying.Subset(number, 3)
            report = repo.verify(options=verifying.Options(subset=subset))
            assert report.is_sound
            for (which, name), count in store.calls.items():
                if which == 'get':
                    reads[name] += count
        chunks = {name for _, name in repo.manifest(image.root).chunks()}
        assert {reads[name] for name in chunks} == {1}

    def test_the_other_parts_are_looked_at(self, repo, image):
        name = chunk_at(repo, 0)
        parts = [verifying.Subset(number, 5) for number in range(1, 6)]
        (mine,) = [part for part in parts if part.has(name)]
        damage(repo, name)
        others = [part for part in parts if part != mine]
        for part in others:
            assert repo.verify(options=verifying.Options(subset=part)).is_sound
        assert not repo.verify(options=verifying.Options(subset=mine)).is_sound
        path_of(repo, name).unlink()
        for part in others:
            assert not repo.verify(
                options=verifying.Options(subset=part)
            ).is_sound


def test_a_scrub_keeps_its_pace(repo, image):
    """What it reads of the store, by a clock that sleeping moves."""
    slept = []
    pace = pacing.Pace(1000, clock=lambda: 0.0, sleep=slept.append)
    repo.verify(options=verifying.Options(pace=pace))
    stored_bytes = sum(dict(repo.store.list()).values())
    assert max(slept) == pytest.approx(stored_bytes / 1000)


def test_progress_is_told_with_its_end(repo, monkeypatch):
    monkeypatch.setattr('lazyblob.survey._STEP', 10)
    repo.create([some_data(50)], blob_id='image', **SIZES)
    steps = []
    repo.verify(progress=lambda *step: steps.append(step))
    assert ('listing', 50, None) in steps
    assert steps[-1] == ('verifying', 52, 52)


def test_a_disk_that_ends_elsewhere_has_its_end_looked_at(repo, image):
    """A node's shape depends on where the disk ends: equal, yet not right."""
    blob = repo.catalog.get('image')
    version = repo.catalog.version('image')
    descriptor = repo.tree(version.root).descriptor
    from lazyblob import chunk
    from lazyblob import digest
    from lazyblob import manifest

    short = manifest.Descriptor(CHUNK, CHUNK, descriptor.tree).encode()
    keys = digest.keys(blob.scope)
    name = digest.of(short, keys.descriptor)
    repo.store.put(name, chunk.pack(short, chunk.Kind.DESCRIPTOR))
    made = repo.catalog.create(
        'wrong', kind=api.Kind.IMAGE, project_id='', chunk_size_bytes=CHUNK
    )
    repo.catalog.begin_session('test', 'session')
    repo.catalog.publish(
        'wrong',
        epoch=made.epoch,
        parent=0,
        commit_id='c',
        root=name.hex(),
        size_bytes=CHUNK,
        session_id='session',
    )
    report = repo.verify()
    assert 'malformed' in report.faults[descriptor.tree].reason
