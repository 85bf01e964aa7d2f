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
"""What every chunk store promises, whoever implements it.

Inherit :class:`StoreContract` in a test module and give it a fixture
``site``: a place that outlives the stores opened on it, with

* ``open(fail_call=None, error=...)``: one more store; its n-th call beneath
  it fails;
* ``cut(digest, size_bytes)``: shorten an object, as a loss of power may;
* ``flip(digest)``: damage it without changing its length.
"""

import itertools
import random
import threading

import pytest

from lazyblob import chunk
from lazyblob import digest
from lazyblob import exceptions

KEY = digest.keys(digest.REPOSITORY_SCOPE).chunk


def an_object(seed=1, size=20000):
    """A digest and the object that it names."""
    content = random.Random(seed).randbytes(size)
    name = digest.of(content, KEY)
    return name, chunk.pack(content, chunk.Kind.CHUNK)


NAME, DATA = an_object()


class StoreContract:
    def test_an_object_reads_back_as_it_was_put(self, site):
        site.open().put(NAME, DATA)
        store = site.open()
        assert store.has(NAME)
        assert store.get(NAME, 1 << 20) == DATA
        assert list(store.list()) == [(NAME, len(DATA))]

    def test_what_was_never_put_is_not_found(self, site):
        store = site.open()
        assert not store.has(NAME)
        with pytest.raises(exceptions.NotFound, match=NAME.hex()):
            store.get(NAME, 1 << 20)

    def test_a_put_may_be_repeated(self, site):
        for _ in range(3):
            site.open().put(NAME, DATA)
        assert site.open().get(NAME, 1 << 20) == DATA
        assert len(list(site.open().list())) == 1

    def test_many_puts_of_one_object_at_once_leave_it_whole(self, site):
        store = site.open()
        faults = []
        barrier = threading.Barrier(8)

        def put():
            barrier.wait()
            try:
                store.put(NAME, DATA)
                assert store.get(NAME, 1 << 20) == DATA
            except BaseException as exc:
                faults.append(exc)

        threads = [threading.Thread(target=put) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not faults
        assert site.leftovers() == []

    @pytest.mark.parametrize('size', [0, 1, 31, 32, 33, len(DATA) - 1])
    def test_an_object_that_was_cut_short_is_put_again(self, site, size):
        site.open().put(NAME, DATA)
        site.cut(NAME, size)
        store = site.open()
        assert not store.has(NAME)
        store.put(NAME, DATA)
        assert store.has(NAME)
        assert store.get(NAME, 1 << 20) == DATA
        assert site.leftovers() == []

    def test_a_damaged_object_is_never_taken_for_its_content(self, site):
        site.open().put(NAME, DATA)
        site.flip(NAME)
        data = site.open().get(NAME, 1 << 20)
        with pytest.raises(exceptions.ChunkCorrupt, match=NAME.hex()):
            chunk.unpack(data, NAME, KEY, chunk.Kind.CHUNK, 1 << 20)

    def test_more_than_was_asked_for_is_refused(self, site):
        site.open().put(NAME, DATA)
        assert site.open().get(NAME, len(DATA)) == DATA
        with pytest.raises(exceptions.ChunkCorrupt, match=NAME.hex()):
            site.open().get(NAME, len(DATA) - 1)

    def test_a_damaged_object_is_replaced(self, site):
        site.open().put(NAME, DATA)
        site.flip(NAME)
        store = site.open()
        store.put(NAME, DATA)
        assert store.get(NAME, 1 << 20) != DATA, 'a put believes the length'
        store.replace(NAME, DATA)
        assert store.get(NAME, 1 << 20) == DATA
        assert site.leftovers() == []

    def test_a_deleted_object_is_gone_and_deleting_again_is_no_error(
        self, site
    ):
        store = site.open()
        store.put(NAME, DATA)
        store.delete(NAME)
        store.delete(NAME)
        assert not store.has(NAME)
        assert list(store.list()) == []

    def test_everything_is_listed(self, site):
        objects = dict(an_object(seed, 100 + seed) for seed in range(40))
        store = site.open()
        for name, data in objects.items():
            store.put(name, data)
        expected = {name: len(data) for name, data in objects.items()}
        assert dict(store.list()) == expected

    def test_a_sync_may_be_asked_for_at_any_time(self, site):
        store = site.open()
        store.sync([])
        store.put(NAME, DATA)
        store.sync([NAME])

    def test_initialising_again_keeps_what_is_there(self, site):
        store = site.open()
        store.put(NAME, DATA)
        store.initialise()
        assert store.get(NAME, 1 << 20) == DATA

    @pytest.mark.parametrize('was_cut', [False, True])
    def test_a_put_that_fails_leaves_the_whole_object_or_nothing(
        self, site, was_cut
    ):
        """Fails the first call beneath the store, then the second, ..."""
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
                assert not after.has(NAME) or after.get(NAME, 1 << 20) == DATA
                assert site.leftovers() == []
                after.put(NAME, DATA)
                assert after.get(NAME, 1 << 20) == DATA
            else:
                break
        assert nth > 3, 'too few faults were injected: this proves nothing'
        assert site.open().get(NAME, 1 << 20) == DATA
