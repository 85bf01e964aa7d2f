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
"""What a failed fetch means to those who wait for the chunk."""

import threading

import pytest

from lazyblob import exceptions
from nova_lazyimage.agent import fetcher

DIGEST = bytes(range(32))


class Engine:
    """Wants one chunk, until it has it or was told twice why not."""

    def __init__(self, refuses=0):
        self.calls = []
        self.done = threading.Event()
        self._refuses = refuses
        self._looks = 0
        self._wanted = True
        self._mutex = threading.Lock()

    def next_fetch(self, guests_only, timeout_seconds):
        with self._mutex:
            if self._wanted:
                self._wanted = False
                return {
                    'digest': DIGEST,
                    'priority': 0,
                    'chunk_size_bytes': 4096,
                }
        self.done.wait(0.01)
        return None

    def fetched(self, digest, data, source):
        assert source in ('peer', 'store')
        if self._refuses:
            self._refuses -= 1
            self.calls.append('refused')
            raise ValueError('its digest does not match')
        self.calls.append('fetched')
        self.done.set()

    def refused(self, digest, reason, source):
        self.calls.append(f'told: {source}: {reason}')

    def fetch_failed(self, digest, kind, reason):
        self.calls.append(kind)
        self._looks += kind != 'transport'
        if self._looks < 2:
            with self._mutex:
                self._wanted = True
        else:
            self.done.set()


class Repository:
    """Fails as it is told, call by call, then answers."""

    def __init__(self, *failures):
        self._failures = list(failures)

    def fetch(self, digest, size_bytes):
        assert size_bytes == 4096
        if self._failures:
            raise self._failures.pop(0)
        return b'object'


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name in ('RECHECK', 'PAUSE', 'PAUSE'):
        for suffix in ('_SECONDS', '_SECONDS_MIN', '_SECONDS_MAX'):
            if hasattr(fetcher, name + suffix):
                monkeypatch.setattr(fetcher, name + suffix, 0.001)


def run(engine, *repositories):
    sources = ('store',) if len(repositories) == 1 else ('peer', 'store')
    tiers = [
        fetcher.Tier(source, repository.fetch)
        for source, repository in zip(sources, repositories, strict=True)
    ]
    made = fetcher.Fetcher(engine, tiers, threads=2, guest_threads=1)
    made.start()
    assert engine.done.wait(10)
    made.stop()
    return made


def test_a_chunk_is_handed_to_the_engine():
    engine = Engine()
    made = run(engine, Repository())
    assert engine.calls == ['fetched']
    assert made.fetched_bytes == len(b'object')


def test_not_found_is_asked_once_more_before_it_is_believed(expect_logs):
    gone = exceptions.NotFound('gone')
    engine = Engine()
    with expect_logs('is missing in every tier'):
        run(engine, Repository(gone))
    assert engine.calls == ['missing', 'fetched']
    engine = Engine()
    with expect_logs('is missing in every tier', 2):
        run(engine, Repository(gone, gone))
    assert engine.calls == ['missing', 'missing']


def test_a_corrupt_object_is_fetched_once_more(expect_logs):
    engine = Engine(refuses=1)
    with expect_logs('is corrupt in every tier'):
        run(engine, Repository())
    assert engine.calls == ['refused', 'corrupt', 'fetched']
    engine = Engine(refuses=2)
    with expect_logs('is corrupt in every tier', 2):
        made = run(engine, Repository())
    assert engine.calls == ['refused', 'corrupt', 'refused', 'corrupt']
    assert made.failures['store', 'corrupt'] == 2


def test_what_is_too_large_is_told_and_fetched_elsewhere():
    huge = exceptions.ChunkCorrupt('too large')
    engine = Engine()
    made = run(engine, Repository(huge), Repository())
    assert engine.calls == ['told: peer: too large', 'fetched']
    assert made.failures['peer', 'corrupt'] == 1


def test_the_next_tier_is_asked_before_anybody_is_told():
    engine = Engine(refuses=1)
    made = run(engine, Repository(), Repository())
    assert engine.calls == ['refused', 'fetched']
    assert made.failures['peer', 'corrupt'] == 1
    engine = Engine()
    made = run(engine, Repository(OSError(113, 'no route')), Repository())
    assert engine.calls == ['fetched']
    assert made.failures['peer', 'transport'] == 1
    assert not made.alarm.raised


def test_a_tier_that_is_away_may_have_what_the_others_miss():
    engine = Engine()
    away, gone = OSError(113, 'no route'), exceptions.NotFound('gone')
    run(engine, Repository(away), Repository(gone))
    assert engine.calls == ['transport', 'fetched']


@pytest.mark.parametrize(
    'failure',
    [
        exceptions.TemporaryStoreError('slow down'),
        exceptions.StoreDenied('403'),
        exceptions.StoreError('500'),
        OSError(5, 'Input/output error'),
        RuntimeError('a fault of the plug-in'),
    ],
)
def test_whatever_else_happens_is_waited_for(failure, expect_logs):
    engine = Engine()
    with expect_logs('chunk store (does not answer|answers again)', 2):
        made = run(engine, Repository(failure, failure, failure))
    assert engine.calls == ['transport'] * 3 + ['fetched']
    assert not made.alarm.raised


def test_the_alarm_is_said_when_it_starts_and_when_it_ends(expect_logs):
    alarm = fetcher.Alarm()
    with expect_logs('does not answer'):
        for _ in range(100):
            alarm.failed(OSError('away'))
    assert alarm.raised
    with expect_logs('answers again'):
        alarm.answered()
        alarm.answered()
    assert not alarm.raised
