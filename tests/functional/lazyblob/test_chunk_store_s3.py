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
"""The contract of chunk stores, on a real object gateway."""

import dataclasses
import itertools
import random

import gateway as gateways
import pytest

from bench import gateway as comparison
from bench import runs
from lazyblob import exceptions
from lazyblob import repairing
from lazyblob import repository
from lazyblob import verifying
from lazyblob.chunk_store import conformance
from lazyblob.chunk_store import objects

CHUNK = 4096


@pytest.fixture
def site(gateway, proxy):
    return gateways.S3Site(gateway, proxy)


@pytest.mark.expect_logs('Repeating what failed')
class TestBucket(conformance.RemoteContract):
    """The contract."""


def test_what_is_there_is_not_sent_over_it(site):
    import obstore

    site.open().put(*conformance.an_object())
    key = objects.key(conformance.NAME)
    before = obstore.head(site._raw, key)['last_modified']
    site.open().put(*conformance.an_object())
    assert obstore.head(site._raw, key)['last_modified'] == before


class TestRepository:
    """What a repository promises, with its chunks in a bucket."""

    CONTENT = random.Random(7).randbytes(20 * CHUNK)

    @pytest.fixture
    def connect(self, site, proxy, tmp_path):
        """A function that opens the repository, through the proxy or not."""
        url = f's3://{gateways.BUCKET}/{site.prefix}'
        catalog = f'sqlite:///{tmp_path}/catalog.sqlite'
        opened = []

        def connect(**more):
            settings = {'s3': site.gateway.settings(**more)}
            opened.append(
                repository.connect(url, catalog, store_settings=settings)
            )
            return opened[-1]

        settings = {'s3': site.gateway.settings()}
        opened.append(
            repository.initialise(url, catalog, store_settings=settings)
        )
        yield connect
        for each in opened:
            each.close()

    def test_an_image_is_kept_cloned_and_verified(self, connect):
        repo = connect()
        made = repo.create(
            [self.CONTENT], blob_id='image', chunk_size_bytes=CHUNK
        )
        repo.clone('image', blob_id='clone')
        other = connect()
        for name in ('image', 'clone'):
            assert b''.join(other.open(name).stream()) == self.CONTENT
            assert other.verify(name).is_sound
        # 20 chunks, a node and the descriptor.
        assert len(list(other.store.list())) == 22
        again = connect().create(
            [self.CONTENT], blob_id='again', chunk_size_bytes=CHUNK
        )
        assert again.root == made.root
        assert len(list(other.store.list())) == 22

    @pytest.mark.parametrize('fault', ['500', 'lost'])
    def test_an_upload_that_meets_a_fault_is_whole_or_was_not(
        self, connect, proxy, fault
    ):
        """Whichever request it meets: no version with a hole in it."""
        refused = 0
        for nth in itertools.count(1):
            proxy.follow(lambda number, nth=nth: fault * (number == nth))
            repo = connect(endpoint=proxy.endpoint, retry_seconds=0)
            name = f'image{nth}'
            # Another than before: else there were nothing to put.
            data = b''.join(
                bytes([16 * nth + each]) * CHUNK for each in range(5)
            )
            is_over = False
            try:
                repo.create([data], blob_id=name, chunk_size_bytes=CHUNK)
                is_over = not proxy.faults
            except exceptions.StoreError:
                refused += 1
                with pytest.raises(exceptions.NotFound):
                    connect().open(name)
                proxy.follow(lambda number: '')
                repo.create([data], blob_id=name, chunk_size_bytes=CHUNK)
            found = connect()
            assert found.verify(name).is_sound, nth
            assert b''.join(found.open(name).stream()) == data, nth
            if is_over:
                break
        assert refused > 5, 'too few faults: this proves nothing'

    @pytest.mark.expect_logs('Repeating what failed')
    def test_a_gateway_that_fails_every_third_request_is_waited_out(
        self, connect, proxy
    ):
        faults = itertools.cycle(('503', 'cut', 'lost', 'truncated'))
        proxy.follow(lambda number: next(faults) if number % 3 == 0 else '')
        repo = connect(endpoint=proxy.endpoint)
        repo.create([self.CONTENT], blob_id='image', chunk_size_bytes=CHUNK)
        assert repo.verify('image').is_sound
        assert b''.join(repo.open('image').stream()) == self.CONTENT
        assert proxy.faults > 20

    def test_a_wrong_byte_anywhere_is_found_told_and_mended(
        self, connect, site, tmp_path
    ):
        """In each object; from a repository on files."""
        repo = connect()
        data = self.CONTENT[: 2 * CHUNK]
        repo.create([data], blob_id='i', chunk_size_bytes=CHUNK)
        urls = repository.urls_of((tmp_path / 'backup').as_uri())
        backup = repository.initialise(*urls)
        backup.create([data], blob_id='b', chunk_size_bytes=CHUNK)
        source = repairing.StoreSource(backup.store)
        names = [name for name, _size in repo.store.list()]
        assert len(names) == 4
        for name in names:
            site.flip(name)
            report = connect().verify()
            (problem,) = report.problems()
            assert problem.digest == name.hex()
            assert (problem.blob_id, problem.version) == ('i', 1)
            with pytest.raises(exceptions.ChunkCorrupt):
                list(connect().open('i').stream())
            assert repo.repair([source]).mended == [name]
            assert connect().verify().is_sound
        backup.close()

    def test_a_look_goes_by_the_listing(self, connect, proxy):
        """As many requests as nodes and pages, not as chunks."""
        repo = connect()
        repo.create([self.CONTENT], blob_id='i', chunk_size_bytes=CHUNK)
        seen = []
        proxy.follow(lambda number: seen.append(number) or '')
        look = verifying.Options(reads_data=False)
        watched = connect(endpoint=proxy.endpoint)
        report = watched.verify(options=look)
        assert report.is_sound
        assert report.chunk_count == 20
        assert 0 < len(seen) < 10
        proxy.follow(lambda number: '')
        lost = repo.manifest(repo.catalog.version('i').root).get(3)
        repo.store.delete(lost)
        (problem,) = watched.verify(options=look).problems()
        assert (problem.offset, problem.digest) == (3 * CHUNK, lost.hex())


def test_the_comparison_with_obstore_works(gateway, tmp_path, monkeypatch):
    """Here, where a gateway is up; nobody looks at its figures."""
    monkeypatch.setattr(comparison, 'SIZE_BYTES', 2 << 20)
    place = comparison.Place(gateway)
    bench = dataclasses.replace(
        comparison.BENCH,
        contenders=lambda work: [
            comparison.Obstore(place),
            comparison.Repository(work, place),
        ],
    )
    runs.smoke(bench, work=tmp_path)
