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
"""Chunks on several disks: the contract, and what is stripes' own."""

import collections
import contextlib
import errno
import itertools
import os
import pathlib
import shutil
import tempfile
import threading

import pytest

from lazyblob import exceptions
from lazyblob import plugins
from lazyblob.chunk_store import conformance
from lazyblob.chunk_store import file
from lazyblob.chunk_store import stripes
from lazyblob.chunk_store.conformance import DATA
from lazyblob.chunk_store.conformance import LIMIT
from lazyblob.chunk_store.conformance import NAME
from lazyblob.chunk_store.conformance import an_object

CALLS = ('open', 'writev', 'fchmod', 'link', 'replace')


class FileSite(conformance.Site):
    """Folders below one; disks are mounted by renaming."""

    def __init__(self, root, monkeypatch, names):
        self.root = root
        self.names = list(names)
        self._monkeypatch = monkeypatch
        self.open().initialise()

    @property
    def url(self):
        return 'file://' + ','.join(str(self.root / n) for n in self.names)

    def open(self):
        return plugins.chunk_store(self.url)

    def holders(self, name):
        """Folders where an object lies."""
        key = file.objects.key(name)
        return [n for n in self.names if (self.root / n / key).exists()]

    def path(self, name):
        (holder,) = self.holders(name)
        return self.root / holder / file.objects.key(name)

    def cut(self, name, size_bytes):
        os.truncate(self.path(name), size_bytes)

    def flip(self, name):
        path = self.path(name)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    def leftovers(self):
        return list(self.root.rglob('.new-*'))

    @contextlib.contextmanager
    def broken(self, error, calls, is_hit=lambda count: True):
        count = 0

        def wrap(real):
            def call(*arguments, **keywords):
                nonlocal count
                count += 1
                if is_hit(count):
                    raise OSError(error, os.strerror(error))
                return real(*arguments, **keywords)

            return call

        store = self.open()
        with self._monkeypatch.context() as patch:
            for name in calls:
                patch.setattr(file.os, name, wrap(getattr(os, name)))
            yield store

    def failing(self, nth):
        return self.broken(errno.EIO, CALLS, lambda count: count == nth)

    def full(self):
        return self.broken(errno.ENOSPC, ['writev'])

    def denied(self):
        return self.broken(errno.EACCES, ['writev', 'link'])

    @contextlib.contextmanager
    def away(self, names=None):
        for name in names or self.names:
            (self.root / name).rename(self.root / f'{name}-away')
        try:
            yield self.open()
        finally:
            for name in names or self.names:
                (self.root / f'{name}-away').rename(self.root / name)


@pytest.fixture
def site(monkeypatch):
    # In memory: every disk is synced, and makes 256 folders.
    with tempfile.TemporaryDirectory(dir='/dev/shm') as folder:
        yield FileSite(pathlib.Path(folder), monkeypatch, 'abc')


class TestThreeDisks(conformance.Contract):
    """The contract."""


def put_many(site, count=300):
    objects = dict(an_object(seed, 50) for seed in range(count))
    site.fill(objects)
    return objects


def places(site, objects):
    return {name: site.holders(name) for name in objects}


def test_disks_fill_evenly_and_hold_each_object_once(site):
    found = places(site, put_many(site))
    assert all(len(holders) == 1 for holders in found.values())
    counts = collections.Counter(holders[0] for holders in found.values())
    assert all(70 < counts[name] < 130 for name in 'abc'), counts


def test_a_place_depends_on_the_disk_and_not_on_its_path(site):
    objects = put_many(site)
    before = places(site, objects)
    moved = {'a': 'x', 'b': 'b', 'c': 'z'}
    for old, new in moved.items():
        if old != new:
            (site.root / old).rename(site.root / new)
    site.names = ['z', 'b', 'x']
    site.fill(objects)
    after = places(site, objects)
    assert after == {k: [moved[v[0]]] for k, v in before.items()}


class TestOneMoreDisk:
    def test_everything_is_found_and_nothing_is_written_again(self, site):
        objects = put_many(site)
        before = places(site, objects)
        site.names.append('d')
        site.open().initialise()
        store = site.open()
        for name, data in objects.items():
            assert store.has(name)
            assert store.get(name, LIMIT) == data
        site.fill(objects)
        assert places(site, objects) == before
        assert dict(store.list()) == {n: len(d) for n, d in objects.items()}

    def test_new_objects_go_there_and_to_where_they_went(self, site):
        objects = put_many(site)
        before = places(site, objects)
        for name in objects:
            site.open().delete(name)
        site.names.append('d')
        site.open().initialise()
        site.fill(objects)
        after = places(site, objects)
        moved = [name for name in objects if after[name] != before[name]]
        assert all(after[name] == ['d'] for name in moved)
        assert 45 < len(moved) < 110, 'a fourth of them is 75'

    def test_one_folder_becomes_two(self, tmp_path, monkeypatch):
        site = FileSite(tmp_path, monkeypatch, 'a')
        site.open().put(NAME, DATA)
        site.names.append('b')
        site.open().initialise()
        assert site.open().get(NAME, LIMIT) == DATA
        site.open().put(NAME, DATA)
        assert site.holders(NAME) == ['a']

    def test_those_who_know_only_the_others_do_not_call_it_absent(self, site):
        """An agent that was not restarted yet."""
        old = site.open()
        old.put(NAME, DATA)
        site.names.append('d')
        site.open().initialise()
        new = site.open()
        for seed in range(2, 40):
            new.put(*an_object(seed, 50))
        there = [
            s for s in range(2, 40) if 'd' in site.holders(an_object(s, 50)[0])
        ]
        assert there
        name, _data = an_object(there[0], 50)
        for operation in (lambda: old.get(name, LIMIT), lambda: old.has(name)):
            with pytest.raises(
                exceptions.TemporaryStoreError, match='was added'
            ):
                operation()
        assert old.get(NAME, LIMIT) == DATA

    def test_leaving_one_out_is_refused(self, site):
        site.names.remove('b')
        with pytest.raises(exceptions.InvalidConfiguration, match='leaves'):
            site.open().has(NAME)
        with pytest.raises(exceptions.Conflict, match='leaves out 1'):
            site.open().initialise()

    def test_one_is_given_up(self, site):
        objects = put_many(site, 60)
        kept = [
            n for n, where in places(site, objects).items() if where != ['b']
        ]
        site.names.remove('b')
        for name in site.names:
            (site.root / name / stripes.IDENTITY).unlink()
        store = site.open()
        store.initialise()
        assert {name for name, _size in store.list()} == set(kept)
        assert all(store.get(n, LIMIT) == objects[n] for n in kept)


class TestOneDiskAway:
    @pytest.mark.parametrize('was_used', [False, True])
    def test_the_others_serve_and_what_it_holds_waits(self, site, was_used):
        objects = put_many(site, 60)
        where = places(site, objects)
        store = site.open()
        if was_used:
            store.has(NAME)
        with site.away(['b']):
            for name, data in objects.items():
                if where[name] == ['b']:
                    with pytest.raises(
                        exceptions.TemporaryStoreError, match='mount'
                    ):
                        store.get(name, LIMIT)
                    with pytest.raises(exceptions.TemporaryStoreError):
                        store.put(name, data)
                else:
                    assert store.get(name, LIMIT) == data
                    store.put(name, data)
        assert all(store.get(n, LIMIT) == d for n, d in objects.items())
        assert places(site, objects) == where

    def test_what_one_cannot_read_another_may_have(self, site):
        store = site.open()
        store.put(NAME, DATA)
        (holder,) = site.holders(NAME)
        other = next(name for name in site.names if name != holder)
        path = site.path(NAME)
        copy = site.root / other / path.relative_to(site.root / holder)
        path.rename(copy)
        path.mkdir()
        assert store.get(NAME, LIMIT) == DATA
        assert b''.join(store.get_parts(NAME, LIMIT)) == DATA
        copy.unlink()
        with pytest.raises(exceptions.ChunkCorrupt, match='is no file'):
            store.get(NAME, LIMIT)

    def test_an_empty_folder_in_its_place_is_not_it(self, site):
        """The mount point, when the disk is not mounted."""
        objects = put_many(site, 30)
        store = site.open()
        with site.away(['b']):
            (site.root / 'b').mkdir()
            for name, data in objects.items():
                with contextlib.suppress(exceptions.TemporaryStoreError):
                    assert store.get(name, LIMIT) == data
                with contextlib.suppress(exceptions.TemporaryStoreError):
                    store.put(name, data)
            assert list((site.root / 'b').iterdir()) == []
            with pytest.raises(exceptions.TemporaryStoreError):
                list(store.list())
            (site.root / 'b').rmdir()

    def test_two_that_changed_places_are_refused(self, site):
        store = site.open()
        store.put(NAME, DATA)
        for old, new in (('a', 'x'), ('b', 'a'), ('x', 'b')):
            (site.root / old).rename(site.root / new)
        with pytest.raises(exceptions.Conflict, match='mount each'):
            store.has(an_object(2)[0])
        assert site.open().get(NAME, LIMIT) == DATA

    def test_a_copy_of_a_disk_is_refused(self, site):
        shutil.rmtree(site.root / 'c')
        shutil.copytree(site.root / 'b', site.root / 'c')
        with pytest.raises(exceptions.Conflict, match='same disk'):
            site.open().has(NAME)

    def test_a_store_that_was_never_made_says_how(self, tmp_path):
        store = stripes.StripedStore(f'file://{tmp_path}/a,{tmp_path}/b')
        with pytest.raises(exceptions.TemporaryStoreError, match='init'):
            store.put(NAME, DATA)
        assert list(tmp_path.iterdir()) == []


class TestSync:
    @pytest.fixture
    def synced(self, site, monkeypatch):
        """Folders in the order of their syncs."""
        found = []
        real = file.FileStore.sync

        def sync(store, digests):
            found.append(store.url[-1])
            real(store, digests)

        monkeypatch.setattr(file.FileStore, 'sync', sync)
        return found

    def test_only_disks_that_were_put_on_or_found_on(self, site, synced):
        store = site.open()
        store.sync([])
        assert synced == []
        store.put(NAME, DATA)
        store.sync([NAME])
        store.sync([NAME])
        assert synced == site.holders(NAME)
        again = site.open()
        assert again.has(NAME)
        again.sync([NAME])
        assert synced == 2 * site.holders(NAME)
        third = site.open()
        third.put(NAME, DATA)
        third.sync([NAME])
        assert synced == 3 * site.holders(NAME)

    def test_where_a_put_finds_it_is_synced(self, site, synced):
        """Not at its place: that is on a disk that was added."""
        objects = put_many(site, 60)
        site.names.append('d')
        site.open().initialise()
        synced.clear()
        for name, data in objects.items():
            store = site.open()
            store.put(name, data)
            store.sync([name])
            assert synced == site.holders(name)
            synced.clear()

    def test_one_that_failed_is_synced_again(self, site, monkeypatch):
        store = site.open()
        store.put(NAME, DATA)
        with monkeypatch.context() as patch:

            def fail(handle):
                raise OSError(errno.EIO, 'Input/output error')

            patch.setattr(file, '_sync_file_system', fail)
            with pytest.raises(exceptions.StoreError, match='sync'):
                store.sync([NAME])
        with pytest.raises(exceptions.StoreError, match='sync'):
            store.sync([NAME])

    def test_whoever_comes_during_a_sync_waits_for_it(self, site, monkeypatch):
        """What is being synced may be his."""
        store = site.open()
        store.put(NAME, DATA)
        began, go_on, order = threading.Event(), threading.Event(), []
        real = file._sync_file_system

        def slow(handle):
            began.set()
            go_on.wait(10)
            real(handle)
            order.append('synced')

        monkeypatch.setattr(file, '_sync_file_system', slow)

        def second():
            store.sync([NAME])
            order.append('second')

        threads = [threading.Thread(target=store.sync, args=([NAME],))]
        threads[0].start()
        began.wait(10)
        threads.append(threading.Thread(target=second))
        threads[1].start()
        threads[1].join(0.2)
        go_on.set()
        for thread in threads:
            thread.join()
        assert order == ['synced', 'second']


def test_a_copy_elsewhere_is_replaced_too(site):
    """After a disk was added there may be two."""
    site.open().put(NAME, DATA)
    (holder,) = site.holders(NAME)
    key = file.objects.key(NAME)
    for other in set(site.names) - {holder}:
        shutil.copy(site.root / holder / key, site.root / other / key)
        with open(site.root / other / key, 'r+b') as copy:
            copy.seek(100)
            copy.write(bytes(8))
    store = site.open()
    assert list(store.list()) == [(NAME, len(DATA))]
    store.replace(NAME, DATA)
    for name in site.names:
        assert (site.root / name / key).read_bytes() == DATA
    store.delete(NAME)
    assert site.holders(NAME) == []


@pytest.mark.parametrize(
    'text', ['', '{}', '[]', '{"identity": "a"}', '\xff', '{"identity": 1']
)
def test_a_damaged_identity_is_told(site, text):
    name = site.root / 'b' / stripes.IDENTITY
    name.write_text(text, encoding='latin-1')
    with pytest.raises(exceptions.StoreError, match='restore it'):
        site.open().has(NAME)


def test_initialising_at_a_fault_is_completed_by_the_next(
    tmp_path, monkeypatch
):
    (tmp_path / 'x').mkdir()
    site = FileSite(tmp_path, monkeypatch, 'abc')
    site.open().put(NAME, DATA)
    site.names.append('d')
    real = os.replace
    for nth in range(1, 5):
        calls = itertools.count(1)

        def replace(*arguments, calls=calls, nth=nth):
            if next(calls) == nth:
                raise OSError(errno.EIO, 'Input/output error')
            return real(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(stripes.os, 'replace', replace)
            with contextlib.suppress(exceptions.StoreError):
                site.open().initialise()
        assert not list(site.root.rglob('.disk-*'))
    site.open().initialise()
    noted = {stripes.Disk(site.root / n).read()[1] for n in site.names}
    assert len(noted) == 1
    assert site.open().get(NAME, LIMIT) == DATA


@pytest.mark.parametrize(
    'url',
    [
        'file:///a,/a',
        'file:///a,b',
        'file:///a,',
        'file:///a,file:///b',
        'file://host/a,/b',
        'file:///' + ',/'.join(f'd{number}' for number in range(65)),
    ],
)
def test_a_url_that_cannot_work_is_refused(url):
    with pytest.raises(exceptions.InvalidConfiguration, match='chunk store'):
        plugins.chunk_store(url)


def test_a_comma_in_a_name_is_written_as_an_escape(tmp_path):
    store = plugins.chunk_store(f'file://{tmp_path}/a%2Cb,{tmp_path}/c')
    store.initialise()
    store.put(NAME, DATA)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a,b', 'c']
    assert isinstance(plugins.chunk_store('file:///a%2Cb'), file.FileStore)
