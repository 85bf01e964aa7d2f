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
"""Chunks as files."""

import contextlib
import errno
import os
import stat
import threading
import time

import obstore.store
import pytest

from lazyblob import exceptions
from lazyblob.chunk_store import conformance
from lazyblob.chunk_store import file
from lazyblob.chunk_store import objects
from lazyblob.chunk_store.conformance import DATA
from lazyblob.chunk_store.conformance import NAME

CALLS = ('open', 'writev', 'fchmod', 'link', 'replace')


class Site(conformance.Site):
    def __init__(self, root, monkeypatch):
        self.root = root
        self.url = root.as_uri()
        self._monkeypatch = monkeypatch
        file.FileStore(self.url).initialise()

    def open(self):
        return file.FileStore(self.url)

    def path(self, name):
        return self.root / objects.key(name)

    def cut(self, name, size_bytes):
        os.truncate(self.path(name), size_bytes)

    def flip(self, name):
        path = self.path(name)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    def leftovers(self):
        return [p for p in self.root.rglob('.new-*')]

    @contextlib.contextmanager
    def failing(self, nth, error=errno.EIO, calls=CALLS):
        """A store whose n-th call of the system fails."""
        count = 0

        def wrap(name, real):
            def call(*arguments, **keywords):
                nonlocal count
                count += 1
                if count == nth:
                    raise OSError(error, os.strerror(error))
                return real(*arguments, **keywords)

            return call

        with self._monkeypatch.context() as patch:
            for name in calls:
                patch.setattr(file.os, name, wrap(name, getattr(os, name)))
            yield self.open()

    def full(self):
        return self.failing(1, errno.ENOSPC, ['writev'])

    def denied(self):
        return self.failing(1, errno.EACCES, ['writev'])

    @contextlib.contextmanager
    def away(self):
        aside = self.root.with_name('aside')
        self.root.rename(aside)
        yield self.open()
        aside.rename(self.root)


@pytest.fixture
def site(tmp_path, monkeypatch):
    return Site(tmp_path / 'chunks', monkeypatch)


class TestFiles(conformance.Contract):
    """The contract."""


class TestFilesWithoutUnnamedOnes(conformance.Contract):
    """The contract where O_TMPFILE is not to be had, as on NFS."""

    @pytest.fixture(autouse=True)
    def nfs(self, monkeypatch, site):
        real = os.open

        def refuse(path, flags, *rest, **keywords):
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(errno.EOPNOTSUPP, 'no')
            return real(path, flags, *rest, **keywords)

        monkeypatch.setattr(file.os, 'open', refuse)


def test_what_a_dead_process_left_goes_when_it_is_a_day_old(site):
    site.open().put(NAME, DATA)
    folder = site.path(NAME).parent
    for name, hours in (('old', 25), ('new', 23)):
        path = folder / f'.new-{name}'
        path.write_bytes(b'half of an obj')
        since = time.time() - hours * 3600
        os.utime(path, (since, since))
    assert list(site.open().list()) == [(NAME, len(DATA))]
    site.open().initialise()
    assert [path.name for path in site.leftovers()] == ['.new-new']
    assert site.open().get(NAME, conformance.LIMIT) == DATA


@pytest.mark.parametrize('mask', [0o000, 0o022, 0o077])
def test_a_group_shares_the_store_under_any_umask(tmp_path, mask, monkeypatch):
    before = os.umask(mask)
    try:
        site = Site(tmp_path / 'chunks', monkeypatch)
        site.open().put(NAME, DATA)
    finally:
        os.umask(before)
    for path in (site.root, *site.root.iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o2770
    assert len(list(site.root.iterdir())) == 256
    mode = site.path(NAME).stat().st_mode
    assert stat.S_IMODE(mode) == 0o640


def test_a_folder_that_was_there_keeps_its_mode(tmp_path, monkeypatch):
    root = tmp_path / 'chunks'
    root.mkdir(mode=0o711)
    Site(root, monkeypatch)
    assert stat.S_IMODE(root.stat().st_mode) == 0o711


@pytest.mark.parametrize(
    ('error', 'kind'),
    [
        (errno.ENOSPC, exceptions.StoreFull),
        (errno.EDQUOT, exceptions.StoreFull),
        (errno.EACCES, exceptions.StoreDenied),
        (errno.EROFS, exceptions.StoreDenied),
        (errno.EIO, exceptions.StoreError),
    ],
)
def test_an_error_has_its_kind(site, error, kind):
    with site.failing(1, error, ['writev']) as store:
        with pytest.raises(kind, match=os.strerror(error)):
            store.put(NAME, DATA)
    assert not site.open().has(NAME)


def test_a_file_without_end_is_not_read(site):
    site.open().put(NAME, DATA)
    os.truncate(site.path(NAME), 1 << 40)
    with pytest.raises(exceptions.ChunkCorrupt, match=str(1 << 40)):
        site.open().get(NAME, 1 << 20)
    assert not site.open().has(NAME)


def test_what_is_no_file_keeps_nobody_waiting(site):
    os.mkfifo(site.path(NAME))
    with pytest.raises(exceptions.ChunkCorrupt, match='no file'):
        site.open().get(NAME, 1 << 20)
    with pytest.raises(exceptions.StoreError):
        site.open().put(NAME, DATA)


def test_a_short_write_goes_on(site, monkeypatch):
    real = os.writev
    monkeypatch.setattr(
        file.os, 'writev', lambda h, parts: real(h, [parts[0][:1000]])
    )
    site.open().put(NAME, DATA[:32], b'', DATA[32:])
    assert site.open().get(NAME, 1 << 20) == DATA


def test_what_is_there_is_not_written_again(site):
    site.open().put(NAME, DATA)
    before = site.path(NAME).stat()
    site.open().put(NAME, DATA)
    assert site.path(NAME).stat().st_ino == before.st_ino


def test_a_store_that_is_not_mounted_is_not_empty(site, tmp_path):
    """Else a guest would get EIO for ever instead of waiting."""
    store = site.open()
    store.put(NAME, DATA)
    site.root.rename(tmp_path / 'away')
    with pytest.raises(exceptions.TemporaryStoreError, match='mount'):
        store.get(NAME, 1 << 20)
    with pytest.raises(exceptions.TemporaryStoreError, match='init'):
        site.open().get(NAME, 1 << 20)
    with pytest.raises(exceptions.StoreError, match='init'):
        site.open().put(NAME, DATA)
    (tmp_path / 'away').rename(site.root)
    assert store.get(NAME, 1 << 20) == DATA


def test_a_failed_sync_is_never_forgotten(site, monkeypatch):
    store = site.open()
    store.put(NAME, DATA)

    def fail(handle):
        raise OSError(errno.EIO, 'Input/output error')

    with monkeypatch.context() as patch:
        patch.setattr(file, '_sync_file_system', fail)
        with pytest.raises(exceptions.StoreError, match='sync'):
            store.sync([NAME])
    with pytest.raises(exceptions.StoreError, match='sync'):
        store.sync([NAME])
    site.open().sync([NAME])


def test_nothing_is_opened_before_it_is_used(tmp_path):
    store = file.FileStore((tmp_path / 'nix').as_uri())
    store.close()
    assert not (tmp_path / 'nix').exists()


@pytest.mark.parametrize(
    'url',
    [
        'file://host/path',
        'file:relative',
        'file:///a?b',
        'file:///a#b',
        's3://bucket',
        'file:///a,/b',
    ],
)
def test_a_url_that_cannot_work_is_refused(url):
    with pytest.raises(exceptions.InvalidConfiguration, match='chunk store'):
        file.FileStore(url)


def test_a_path_may_hold_any_character(tmp_path, monkeypatch):
    site = Site(tmp_path / 'a b%20ü?#', monkeypatch)
    site.open().put(NAME, DATA)
    assert site.open().get(NAME, 1 << 20) == DATA
    assert isinstance(site.open()._inner, obstore.store.LocalStore)


def test_a_store_is_used_by_many_threads_from_its_first_call(site):
    site.open().put(NAME, DATA)
    store = site.open()
    faults = []

    def get():
        try:
            assert store.get(NAME, 1 << 20) == DATA
        except BaseException as exc:
            faults.append(exc)

    threads = [threading.Thread(target=get) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
