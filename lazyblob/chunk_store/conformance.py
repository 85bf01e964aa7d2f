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
"""What a chunk store must do, as tests that any store can be put to.

For whoever adds a store by the entry point ``lazyblob.chunk_store``; ours
pass the same. It needs nothing but this package and a runner that calls
methods named ``test_...`` with what a fixture ``site`` gives, as pytest does::

    import pytest
    from lazyblob.chunk_store import conformance

    pytest.register_assert_rewrite('lazyblob.chunk_store.conformance')

    class TestMyStore(conformance.Contract):
        @pytest.fixture
        def site(self, tmp_path):
            return MySite(tmp_path)

A :class:`Site` is a place that outlives the stores opened on it, as a bucket
does, and the hand that makes trouble there. Nothing is left out in silence:
what a site cannot do it has to refuse by raising, and the test fails.

:class:`Contract` is for every store, :class:`RemoteContract` moreover for one
that talks over a network.
"""

import abc
import contextlib
import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from lazyblob import chunk
from lazyblob import digest
from lazyblob import exceptions
from lazyblob.chunk_store import base

KEY = digest.keys(digest.REPOSITORY_SCOPE).chunk
#: What no object of these tests is longer than.
LIMIT = 1 << 20
WRITERS = 8


def an_object(seed: int = 1, size: int = 20000) -> tuple[bytes, bytes]:
    """A digest and the object that it names."""
    content = random.Random(seed).randbytes(size)  # noqa: S311
    return digest.of(content, KEY), chunk.pack(content, chunk.Kind.CHUNK)


NAME, DATA = an_object()


class Site(abc.ABC):
    """A place with one store's objects, empty at first.

    :ivar put_steps_min: a put over an object that was cut short makes at
        least so many calls beneath the store
    :ivar key_count: how many objects the test of listing puts; more than
        two pages of the store's, if it lists by pages
    """

    put_steps_min = 3
    key_count = 300

    @abc.abstractmethod
    def open(self) -> base.ChunkStore:
        """One more store on this place."""

    @abc.abstractmethod
    def cut(self, name: bytes, size_bytes: int) -> None:
        """Shorten an object, as a loss of power may."""

    @abc.abstractmethod
    def flip(self, name: bytes) -> None:
        """Damage an object without changing its length."""

    @abc.abstractmethod
    def failing(self, nth: int) -> AbstractContextManager[base.ChunkStore]:
        """A store whose n-th call beneath it fails, and no other."""

    @abc.abstractmethod
    def full(self) -> AbstractContextManager[base.ChunkStore]:
        """A store on this place that has no room for :data:`DATA`."""

    @abc.abstractmethod
    def denied(self) -> AbstractContextManager[base.ChunkStore]:
        """A store whose user may not write to this place."""

    @abc.abstractmethod
    def away(self) -> AbstractContextManager[base.ChunkStore]:
        """A store whose objects cannot be reached now; they will be again."""

    def leftovers(self) -> list[object]:
        """What a failed put left behind beside objects."""
        return []

    def fill(self, objects: dict[bytes, bytes]) -> None:
        """Put them; a site may know a faster way."""
        store = self.open()
        for name, data in objects.items():
            store.put(name, data)


class Contract:
    """For every store."""

    def test_an_object_reads_back_as_it_was_put(self, site: Site) -> None:
        site.open().put(NAME, DATA)
        store = site.open()
        assert store.has(NAME)
        assert store.get(NAME, LIMIT) == DATA
        assert list(store.list()) == [(NAME, len(DATA))]

    def test_an_object_may_be_put_in_parts(self, site: Site) -> None:
        parts = DATA[:32], b'', bytearray(DATA[32:500]), memoryview(DATA)[500:]
        site.open().put(NAME, *parts)
        assert site.open().get(NAME, LIMIT) == DATA

    def test_every_size_reads_back(self, site: Site) -> None:
        store = site.open()
        for size in (1, 31, 4096, 4097, 1 << 19):
            name, data = an_object(size, size)
            store.put(name, data)
            assert store.get(name, LIMIT) == data, size
            head, rest = store.get_parts(name, LIMIT)
            assert (len(head), head + rest) == (min(32, len(data)), data)

    def test_another_store_reads_what_an_answered_put_wrote(
        self, site: Site
    ) -> None:
        """No delay and no earlier "not there" stands in between."""
        writer, reader = site.open(), site.open()
        for seed in range(8):
            name, data = an_object(seed, 500)
            assert not reader.has(name)
            writer.put(name, data)
            assert reader.has(name), seed
            assert reader.get(name, LIMIT) == data, seed
            assert (name, len(data)) in list(reader.list()), seed

    def test_what_was_never_put_is_not_found(self, site: Site) -> None:
        store = site.open()
        assert not store.has(NAME)
        with raises(exceptions.NotFound, NAME.hex()):
            store.get(NAME, LIMIT)

    def test_a_put_may_be_repeated(self, site: Site) -> None:
        for _ in range(3):
            site.open().put(NAME, DATA)
        assert site.open().get(NAME, LIMIT) == DATA
        assert len(list(site.open().list())) == 1

    def test_a_put_says_whether_it_stored_the_object(self, site: Site) -> None:
        assert site.open().put(NAME, DATA) is True
        assert site.open().put(NAME, DATA) is False
        site.cut(NAME, len(DATA) - 1)
        assert site.open().put(NAME, DATA) is True

    def test_many_puts_of_one_object_at_once_leave_it_whole(
        self, site: Site
    ) -> None:
        shared = site.open()

        def put(number: int) -> None:
            store = site.open() if number % 2 else shared
            store.put(NAME, DATA)
            assert store.get(NAME, LIMIT) == DATA

        at_once(put)
        assert list(site.open().list()) == [(NAME, len(DATA))]
        assert site.leftovers() == []

    def test_an_object_that_was_cut_short_is_put_again(
        self, site: Site
    ) -> None:
        for size in (0, 1, 31, 32, 33, len(DATA) - 1):
            site.open().put(NAME, DATA)
            site.cut(NAME, size)
            store = site.open()
            assert not store.has(NAME), size
            store.put(NAME, DATA)
            assert store.has(NAME), size
            assert store.get(NAME, LIMIT) == DATA, size
        assert site.leftovers() == []

    def test_a_damaged_object_is_never_taken_for_its_content(
        self, site: Site
    ) -> None:
        site.open().put(NAME, DATA)
        site.flip(NAME)
        with raises(exceptions.ChunkCorrupt, NAME.hex()):
            data = site.open().get(NAME, LIMIT)
            chunk.unpack(data, NAME, KEY, chunk.Kind.CHUNK, LIMIT)

    def test_more_than_was_asked_for_is_refused(self, site: Site) -> None:
        site.open().put(NAME, DATA)
        assert site.open().get(NAME, len(DATA)) == DATA
        with raises(exceptions.ChunkCorrupt, NAME.hex()):
            site.open().get(NAME, len(DATA) - 1)
        with raises(exceptions.ChunkCorrupt, NAME.hex()):
            site.open().get_parts(NAME, len(DATA) - 1)

    def test_a_damaged_object_is_replaced(self, site: Site) -> None:
        site.open().put(NAME, DATA)
        site.flip(NAME)
        store = site.open()
        store.put(NAME, DATA)
        assert store.get(NAME, LIMIT) != DATA, 'a put believes the length'
        store.replace(NAME, DATA)
        assert store.get(NAME, LIMIT) == DATA
        assert list(store.list()) == [(NAME, len(DATA))]
        assert site.leftovers() == []

    def test_an_absent_object_may_be_replaced(self, site: Site) -> None:
        site.open().replace(NAME, DATA)
        assert site.open().get(NAME, LIMIT) == DATA
        assert site.leftovers() == []

    def test_a_deleted_object_is_gone_and_deleting_again_is_no_error(
        self, site: Site
    ) -> None:
        store = site.open()
        store.put(NAME, DATA)
        store.delete(NAME)
        store.delete(NAME)
        assert not store.has(NAME)
        assert not site.open().has(NAME)
        assert list(store.list()) == []

    def test_everything_is_listed_once(self, site: Site) -> None:
        objects = dict(an_object(seed, 100) for seed in range(site.key_count))
        site.fill(objects)
        found = list(site.open().list())
        assert len(found) == len(objects)
        assert dict(found) == {
            name: len(data) for name, data in objects.items()
        }

    def test_a_listing_shows_what_was_there_all_the_time(
        self, site: Site
    ) -> None:
        """Whatever is put and deleted meanwhile."""
        stay = dict(an_object(seed, 100) for seed in range(60))
        go = dict(an_object(seed, 100) for seed in range(100, 130))
        site.fill(stay | go)
        changing = site.open()
        found: list[bytes] = []
        for name, _size in site.open().list():
            found.append(name)
            if go:
                changing.delete(go.popitem()[0])
                changing.put(*an_object(1000 + len(go), 100))
        assert len(found) == len(set(found))
        assert not set(stay) - set(found)

    def test_a_sync_may_be_asked_for_at_any_time(self, site: Site) -> None:
        store = site.open()
        store.sync([])
        store.put(NAME, DATA)
        store.sync([NAME])
        site.open().sync([NAME])

    def test_initialising_again_keeps_what_is_there(self, site: Site) -> None:
        store = site.open()
        store.put(NAME, DATA)
        store.initialise()
        assert store.get(NAME, LIMIT) == DATA

    def test_a_put_that_fails_leaves_the_whole_object_or_nothing(
        self, site: Site
    ) -> None:
        """Fails the first call beneath the store, then the second, ..."""
        for was_cut in (False, True):
            for nth in itertools.count(1):
                site.open().delete(NAME)
                if was_cut:
                    site.open().put(NAME, DATA)
                    site.cut(NAME, 40)
                try:
                    with site.failing(nth) as store:
                        store.put(NAME, DATA)
                except exceptions.StoreError:
                    after = site.open()
                    if after.has(NAME):
                        assert after.get(NAME, LIMIT) == DATA, nth
                    assert site.leftovers() == [], nth
                    after.put(NAME, DATA)
                    assert after.get(NAME, LIMIT) == DATA, nth
                else:
                    break
            assert site.open().get(NAME, LIMIT) == DATA
        assert nth > site.put_steps_min, 'too few faults: it proves nothing'

    def test_any_operation_that_fails_says_so(self, site: Site) -> None:
        """No fault is taken for "not there"."""
        site.open().put(NAME, DATA)
        operations: dict[str, Callable[[base.ChunkStore], object]] = {
            'get': lambda store: store.get(NAME, LIMIT),
            'has': lambda store: store.has(NAME),
        }
        for what, operation in operations.items():
            fail_each_step(site, what, operation)

    def test_a_full_store_says_so_and_keeps_nothing_of_it(
        self, site: Site
    ) -> None:
        with site.full() as store:
            with raises(exceptions.StoreFull, 'make room'):
                store.put(NAME, DATA)
            assert not store.has(NAME)
            assert list(store.list()) == []
        assert site.leftovers() == []
        site.open().put(NAME, DATA)
        assert site.open().get(NAME, LIMIT) == DATA

    def test_who_may_not_write_is_told_so(self, site: Site) -> None:
        with site.denied() as store, raises(exceptions.StoreDenied, 'check'):
            store.put(NAME, DATA)
        assert not site.open().has(NAME)

    def test_a_store_that_is_away_is_not_empty(self, site: Site) -> None:
        """Else a guest would get an error for ever instead of waiting."""
        site.open().put(NAME, DATA)
        absent, _data = an_object(2)
        operations: list[Callable[[base.ChunkStore], object]] = [
            lambda store: store.get(NAME, LIMIT),
            lambda store: store.get(absent, LIMIT),
            lambda store: store.has(NAME),
            lambda store: store.has(absent),
            lambda store: list(store.list()),
        ]
        with site.away() as store:
            for operation in operations:
                with raises(exceptions.TemporaryStoreError):
                    operation(store)
            with raises(exceptions.StoreError):
                store.put(*an_object(2))
        assert site.open().get(NAME, LIMIT) == DATA
        assert not site.open().has(absent)

    def test_it_may_be_closed_before_and_after_its_use(
        self, site: Site
    ) -> None:
        site.open().close()
        store = site.open()
        store.put(NAME, DATA)
        store.close()
        store.close()

    def test_many_threads_share_one_store_from_its_first_call(
        self, site: Site
    ) -> None:
        site.open().put(NAME, DATA)
        store = site.open()

        def use(number: int) -> None:
            name, data = an_object(number + 2, 5000)
            assert store.get(NAME, LIMIT) == DATA
            store.put(name, data)
            assert store.has(name)
            assert store.get(name, LIMIT) == data

        at_once(use)


class RemoteSite(Site):
    """A place behind a network that can be disturbed."""

    @abc.abstractmethod
    def disturbed(
        self, fault: str, count: int = 1
    ) -> AbstractContextManager[base.ChunkStore]:
        """A store whose first ``count`` requests meet a fault.

        It repeats what fails; each request may take a second at most.

        :param fault: one of :data:`FAULTS`
        """


#: 'lost' is done by the server, but its answer is not delivered; 'truncated'
#: and 'wrong' are answers without their second half, or with another.
FAULTS = ('500', '503', 'cut', 'slow', 'lost', 'truncated', 'wrong')


class RemoteContract(Contract):
    """Moreover for a store that talks over a network."""

    def test_a_passing_fault_is_waited_out(self, site: RemoteSite) -> None:
        for number, fault in enumerate(FAULTS):
            name, data = an_object(number, 5000)
            with site.disturbed(fault) as store:
                store.put(name, data)
            assert site.open().get(name, LIMIT) == data, fault
            if fault != 'wrong':
                with site.disturbed(fault) as store:
                    assert store.get(name, LIMIT) == data, fault
            if fault in ('wrong', 'slow'):
                continue
            with site.disturbed(fault) as store:
                assert store.has(name), fault
            with site.disturbed(fault) as store:
                assert (name, len(data)) in list(store.list()), fault
            with site.disturbed(fault) as store:
                store.delete(name)
            assert not site.open().has(name), fault

    def test_a_listing_that_fails_says_so(self, site: RemoteSite) -> None:
        """No fault is taken for its end."""
        site.fill(dict(an_object(seed, 100) for seed in range(site.key_count)))
        fail_each_step(site, 'list', lambda store: sorted(store.list()))

    def test_a_wrong_body_is_never_taken_for_the_content(
        self, site: RemoteSite
    ) -> None:
        site.open().put(NAME, DATA)
        with (
            site.disturbed('wrong') as store,
            raises(exceptions.ChunkCorrupt, NAME.hex()),
        ):
            data = store.get(NAME, LIMIT)
            chunk.unpack(data, NAME, KEY, chunk.Kind.CHUNK, LIMIT)

    def test_a_lasting_fault_is_an_error_in_bounded_time(
        self, site: RemoteSite
    ) -> None:
        site.open().put(NAME, DATA)
        for fault in ('500', 'cut', 'truncated'):
            begin = time.monotonic()
            with (
                site.disturbed(fault, count=1000) as store,
                raises(exceptions.TemporaryStoreError),
            ):
                store.get(NAME, LIMIT)
            assert time.monotonic() - begin < 30, fault


@contextlib.contextmanager
def raises(
    kind: type[exceptions.LazyBlobError], text: str = ''
) -> Iterator[None]:
    """Fails unless such an error is raised within, with a text in it."""
    try:
        yield
    except kind as exc:
        assert text in str(exc), f'{exc} does not say "{text}"'
    else:
        raise AssertionError(f'no {kind.__name__} was raised')


def fail_each_step(
    site: Site, what: str, operation: Callable[[base.ChunkStore], object]
) -> None:
    """An operation answers as if nothing had failed, or fails."""
    expected = operation(site.open())
    for nth in itertools.count(1):
        with site.failing(nth) as store:
            try:
                assert operation(store) == expected, (what, nth)
            except exceptions.StoreError:
                continue
        break
    assert nth > 1, f'{what}: no fault came through'


def at_once(operation: Callable[[int], None]) -> None:
    """Call it in several threads, which begin together."""
    faults: list[BaseException] = []
    barrier = threading.Barrier(WRITERS)

    def call(number: int) -> None:
        barrier.wait()
        try:
            operation(number)
        except BaseException as exc:
            faults.append(exc)

    threads = [
        threading.Thread(target=call, args=(number,))
        for number in range(WRITERS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]
