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
    """Wants one chunk, until it has it or was told why not."""

    def __init__(self, refuses=0):
        self.calls = []
        self.done = threading.Event()
        self._refuses = refuses
        self._wanted = True
        self._mutex = threading.Lock()

    def next_fetch(self, guests_only, timeout_seconds):
        with self._mutex:
            if self._wanted:
                self._wanted = False
                return {'digest': DIGEST, 'priority': 0}
        self.done.wait(0.01)
        return None

    def fetched(self, digest, data):
        if self._refuses:
            self._refuses -= 1
            self.calls.append('refused')
            raise ValueError('its digest does not match')
        self.calls.append('fetched')
        self.done.set()

    def fetch_failed(self, digest, kind, reason):
        self.calls.append(kind)
        if kind == 'transport':
            with self._mutex:
                self._wanted = True
        else:
            self.done.set()


class Repository:
    """Fails as it is told, call by call, then answers."""

    def __init__(self, *failures):
        self._failures = list(failures)

    def fetch(self, digest):
        if self._failures:
            raise self._failures.pop(0)
        return b'object'


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name in ('RECHECK', 'PAUSE', 'PAUSE'):
        for suffix in ('_SECONDS', '_SECONDS_MIN', '_SECONDS_MAX'):
            if hasattr(fetcher, name + suffix):
                monkeypatch.setattr(fetcher, name + suffix, 0.001)


def run(engine, repository):
    made = fetcher.Fetcher(
        engine, lambda: repository, threads=2, guest_threads=1
    )
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
    engine = Engine()
    run(engine, Repository(exceptions.NotFound('gone')))
    assert engine.calls == ['fetched']
    engine = Engine()
    gone = exceptions.NotFound('gone')
    with expect_logs('is missing in the store'):
        run(engine, Repository(gone, gone))
    assert engine.calls == ['missing']


def test_a_corrupt_object_is_fetched_once_more(expect_logs):
    engine = Engine(refuses=1)
    run(engine, Repository())
    assert engine.calls == ['refused', 'fetched']
    engine = Engine(refuses=2)
    with expect_logs('is corrupt in the store'):
        run(engine, Repository())
    assert engine.calls == ['refused', 'refused', 'corrupt']


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
