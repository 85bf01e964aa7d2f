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
"""Repair: from other copies, whatever fails, and told what is lost."""

import itertools
import os
import random

import pytest

from lazyblob import exceptions
from lazyblob import repairing
from lazyblob import repository
from lazyblob import verifying
from lazyblob.chunk_store import objects

CHUNK = 4096
SIZES = {'chunk_size_bytes': CHUNK}
DATA = random.Random(11).randbytes(300 * CHUNK)
LOOK = verifying.Options(reads_data=False)


def path_of(repo, name):
    return repo.store._root / objects.key(name)


def damage(repo, name):
    """One bit, which no length shows."""
    path = path_of(repo, name)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


def listed(repo):
    return [row.digest for row in repo.catalog.bad_digests()]


@pytest.fixture
def other(tmp_path):
    """Another repository that was given the same image."""
    urls = repository.urls_of((tmp_path / 'other').as_uri())
    made = repository.initialise(*urls)
    made.create([DATA], blob_id='copy', **SIZES)
    yield made
    made.close()


@pytest.fixture
def image(repo):
    return repo.create([DATA], blob_id='image', **SIZES)


@pytest.fixture
def source(other):
    return repairing.StoreSource(other.store, 'other')


@pytest.fixture
def hurt(repo, image):
    """Damage of every kind; answers the digests."""
    tree = repo.tree(image.root)
    node = tree.descriptor.tree
    manifest = tree.load()
    table = tree.table(node, 1, 0)
    names = [
        manifest.get(0),
        manifest.get(1),
        manifest.get(299),  # Below the leaf that is lost.
        table[32:64],
        node,
        bytes.fromhex(image.root),
    ]
    for number, name in enumerate(names):
        if number % 2:
            path_of(repo, name).unlink()
        else:
            damage(repo, name)
    return names


def test_everything_that_a_source_has_is_put_back(repo, image, hurt, source):
    outcome = repo.repair([source], options=verifying.Options())
    assert sorted(outcome.mended) == sorted(hurt)
    assert outcome.lost == {}
    assert repo.verify().is_sound
    assert listed(repo) == []
    assert repo.catalog.sessions() == []
    assert b''.join(repo.open('image').stream()) == DATA


def test_what_was_found_before_is_mended_without_reading_everything(
    repo, image, hurt, source
):
    """Verify lists what it finds; below a lost node that takes a second."""
    while not repo.verify().is_sound:
        reads = []
        get = repo.store.get

        def counting(name, size_bytes_max, get=get, reads=reads):
            reads.append(name)
            return get(name, size_bytes_max)

        repo.store.get = counting
        assert repo.repair([source], options=LOOK).mended
        repo.store.get = get
        assert len(reads) < 20
    assert listed(repo) == []


def test_a_dry_run_changes_nothing(repo, image, hurt, source):
    def state():
        return {
            path: path.read_bytes()
            for path in repo.store._root.rglob('*')
            if path.is_file()
        }

    before = state()
    outcome = repo.repair([source], is_dry=True)
    assert sorted(outcome.mended) == sorted(hurt)
    assert state() == before
    assert repo.catalog.sessions() == []
    assert not repo.verify().is_sound


def test_what_nobody_has_is_told_with_its_ranges(repo, image, other):
    lost, kept = (repo.manifest(image.root).get(at) for at in (7, 8))
    path_of(repo, lost).unlink()
    path_of(repo, kept).unlink()
    path_of(other, lost).unlink()
    repo.clone('image', blob_id='clone')
    source = repairing.StoreSource(other.store)
    outcome = repo.repair([source])
    assert outcome.mended == [kept]
    found = [
        (p.blob_id, p.offset, p.length_bytes)
        for p in outcome.report.problems(outcome.lost)
    ]
    assert found == [
        ('clone', 7 * CHUNK, CHUNK),
        ('image', 7 * CHUNK, CHUNK),
    ]
    assert listed(repo) == [lost.hex()]


def test_without_a_source_it_tells_what_is_lost(repo, image):
    root = bytes.fromhex(image.root)
    path_of(repo, root).unlink()
    outcome = repo.repair([])
    assert outcome.mended == []
    (problem,) = outcome.report.problems(outcome.lost)
    assert (problem.offset, problem.length_bytes) == (0, len(DATA))


def test_a_source_that_lies_is_not_believed(repo, image, other, tmp_path):
    """Another chunk's bytes, damaged ones, too many; then a true one."""
    names = [repo.manifest(image.root).get(at) for at in range(3)]
    for name in names:
        path_of(repo, name).unlink()
    urls = repository.urls_of((tmp_path / 'liar').as_uri())
    liar = repository.initialise(*urls)
    liar.create([DATA], blob_id='copy', **SIZES)
    swapped = path_of(liar, names[1]).read_bytes()
    path_of(liar, names[0]).chmod(0o600)
    path_of(liar, names[0]).write_bytes(swapped)
    damage(liar, names[1])
    os.truncate(path_of(liar, names[2]), 1 << 30)
    sources = [repairing.StoreSource(liar.store)]
    assert len(repo.repair(sources).lost) == 3
    assert repo.catalog.sessions() == []
    sources.append(repairing.StoreSource(other.store))
    assert sorted(repo.repair(sources).mended) == sorted(names)
    assert repo.verify().is_sound
    liar.close()


@pytest.mark.expect_logs('is passed over')
def test_a_source_that_is_away_is_passed_over(repo, image, source):
    name = repo.manifest(image.root).get(0)
    path_of(repo, name).unlink()

    class Away:
        label = 'away'

        def has(self, asked):
            raise exceptions.TemporaryStoreError('made for this test')

        def content(self, asked):
            raise exceptions.TemporaryStoreError('made for this test')

    assert repo.repair([Away(), source]).mended == [name]


def test_a_session_that_cannot_be_ended_hides_nothing_that_was_done(
    repo, image, hurt, source, expect_logs, monkeypatch
):
    def fail(session_id):
        raise exceptions.CatalogUnavailable('made for this test')

    monkeypatch.setattr(repo.catalog, 'end_session', fail)
    with expect_logs('was not ended'):
        outcome = repo.repair([source])
    assert outcome.mended and not outcome.lost


class Faulty:
    """A part of which the n-th call fails, or kills the process.

    Looks at what is sound are not counted: there are hundreds.
    """

    NAMES = frozenset(
        ('replace', 'sync', 'get', 'has', 'list', 'bad_digests', 'report_bad')
        + ('forget_bad', 'begin_session', 'end_session', 'list_versions')
        + ('version',)
    )

    def __init__(self, inner, hurt, is_it, action, dies_after):
        self._inner = inner
        self._hurt = hurt
        self._is_it = is_it
        self._action = action
        self._dies_after = dies_after

    def __getattr__(self, name):
        inner = getattr(self._inner, name)
        if name not in self.NAMES:
            return inner

        def call(*arguments, **more):
            counts = name not in ('get', 'has') or arguments[0] in self._hurt
            is_it = counts and self._is_it()
            if is_it and not self._dies_after:
                self._action()
            try:
                return inner(*arguments, **more)
            finally:
                if is_it and self._dies_after:
                    self._action()

        return call


def faulty(repo, hurt, nth, action, *, dies_after=False):
    counter = itertools.count()

    def is_it():
        return next(counter) == nth

    made = repository.Repository(
        *(
            Faulty(part, set(hurt), is_it, action, dies_after)
            for part in (repo.store, repo.catalog)
        )
    )
    # Asked for before the first call that counts.
    made._info = repo.info
    return made


@pytest.mark.expect_logs('')
def test_each_call_that_fails_leaves_what_can_be_repeated(
    repo, image, hurt, source
):
    """Whichever: what it did stands, and the next run does the rest."""
    right = {name: None for name in hurt}
    assert repo.repair([source]).lost == {}
    for name in right:
        right[name] = path_of(repo, name).read_bytes()

    def fail():
        raise exceptions.TemporaryStoreError('made for this test')

    for nth in itertools.count():
        for name in hurt:
            path_of(repo, name).unlink(missing_ok=True)
        try:
            faulty(repo, hurt, nth, fail).repair(
                [source], options=verifying.Options(threads=1)
            )
        except exceptions.LazyBlobError:
            pass
        else:
            break
        for name in hurt:
            path = path_of(repo, name)
            if path.exists():
                assert path.read_bytes() == right[name], nth
        outcome = repo.repair([source])
        assert outcome.lost == {}, nth
        assert repo.verify().is_sound, nth
        assert listed(repo) == [], nth
        for session in repo.catalog.sessions():
            repo.catalog.end_session(session.id)
    assert nth > 15


@pytest.mark.parametrize('dies_after', [False, True])
def test_killed_at_any_call_it_is_completed_by_the_next(
    repo, image, hurt, source, urls, dies_after
):
    """A process that ends between two calls, before or after each."""
    ended = 0
    for nth in itertools.count():
        for name in hurt:
            path_of(repo, name).unlink(missing_ok=True)
        child = os.fork()
        if not child:
            try:
                mine = repository.connect(*urls)
                doomed = faulty(
                    mine,
                    hurt,
                    nth,
                    lambda: os._exit(9),
                    dies_after=dies_after,
                )
                options = verifying.Options(threads=1, reads_data=False)
                # One version: what lists the store does not live in a fork.
                doomed.repair([source], 'image', options=options)
                os._exit(0)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        if code == 0:
            break
        assert code == 9
        ended += 1
        for session in repo.catalog.sessions():
            repo.catalog.end_session(session.id)
        assert repo.repair([source], options=LOOK).lost == {}, nth
        assert repo.verify().is_sound, nth
        assert listed(repo) == [], nth
    assert ended > 15
