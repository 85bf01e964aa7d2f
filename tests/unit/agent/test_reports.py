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
"""Bad chunks are told to the catalog, and nobody waits for it."""

import threading
import time

import pytest
from tests.functional.waits import wait_for

from lazyblob import exceptions
from nova_lazyimage.agent import fetcher
from nova_lazyimage.agent import reports

DIGEST = bytes(range(32))


class Catalog:
    """Fails as it is told, then notes."""

    def __init__(self, *failures):
        self.failures = list(failures)
        self.calls = []
        self.held = threading.Event()
        self.held.set()

    def report_bad(self, digests, reporter):
        assert self.held.wait(20)
        if self.failures:
            raise self.failures.pop(0)
        self.calls.append((list(digests), reporter))


class Repository:
    def __init__(self, catalog):
        self.catalog = catalog


@pytest.fixture
def start(monkeypatch):
    """Start to report to a catalog."""
    monkeypatch.setattr(reports, 'PAUSE_SECONDS_MIN', 0.01)
    stopping = threading.Event()
    threads = []

    def starting(catalog):
        found = reports.Reports(lambda: Repository(catalog), 'host-1')
        thread = threading.Thread(target=found.run, args=(stopping,))
        thread.start()
        threads.append(thread)
        return found

    yield starting
    stopping.set()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def test_each_is_told_once_with_who_says_so(start):
    catalog = Catalog()
    catalog.held.clear()
    found = start(catalog)
    found.add(DIGEST)
    time.sleep(0.1)
    found.add(DIGEST)
    found.add(DIGEST[::-1])
    catalog.held.set()
    wait_for(lambda: len(catalog.calls) == 2, 'the reports')
    assert catalog.calls == [
        ([DIGEST.hex()], 'host-1'),
        ([DIGEST[::-1].hex()], 'host-1'),
    ]


def test_a_catalog_that_is_away_is_told_later(start):
    catalog = Catalog(*[exceptions.CatalogUnavailable('away')] * 3)
    start(catalog).add(DIGEST)
    wait_for(lambda: catalog.calls, 'the report')


@pytest.mark.expect_logs('are not told')
def test_a_catalog_that_does_not_know_how_is_told_nothing_more(start):
    catalog = Catalog(exceptions.InvalidConfiguration('upgrade'))
    found = start(catalog)
    found.add(DIGEST)
    wait_for(lambda: not catalog.failures, 'the refusal')
    found.add(DIGEST[::-1])
    wait_for(lambda: catalog.calls, 'the report')
    assert catalog.calls[0][0] == [DIGEST[::-1].hex()]


def test_the_queue_is_bounded_and_nobody_waits_for_it(monkeypatch):
    monkeypatch.setattr(reports, 'WAITING_MAX', 10)
    found = reports.Reports(lambda: None, 'host-1')
    started = time.monotonic()
    for number in range(1000):
        found.add(number.to_bytes(32, 'big'))
    assert time.monotonic() - started < 5
    assert len(found._waiting) == 10


class Engine:
    """Gives a chunk up at its second definite failure."""

    def __init__(self):
        self.looks = 0
        self.ended = threading.Event()

    def next_fetch(self, guests_only, timeout_seconds):
        if self.looks >= 2:
            self.ended.set()
            time.sleep(0.01)
            return None
        return {'digest': DIGEST, 'priority': 0, 'chunk_size_bytes': 4096}

    def fetch_failed(self, digest, kind, reason):
        self.looks += kind != 'transport'
        return self.looks == 2


@pytest.mark.expect_logs('in every tier')
@pytest.mark.expect_logs('chunk store')
def test_what_no_tier_has_is_reported():
    """Once it is certain; what is only away is not."""
    failures = [
        exceptions.TemporaryStoreError('away'),
        exceptions.NotFound('gone'),
        exceptions.NotFound('gone'),
    ]

    def fetch(digest, size_bytes):
        raise failures.pop(0)

    told = []
    engine = Engine()
    made = fetcher.Fetcher(
        engine,
        [fetcher.Tier('store', fetch)],
        threads=1,
        guest_threads=1,
        report=told.append,
    )
    made.start()
    assert engine.ended.wait(20)
    made.stop()
    assert told == [DIGEST]
    assert failures == []
