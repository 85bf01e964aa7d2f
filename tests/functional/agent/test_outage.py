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
"""The store is away for long: who waits, who does not, and what is told.

Contract 40, as it stands there: 64 mirrors, 32 reads of each waiting.
"""

import contextlib
import errno
import hashlib
import json
import mmap
import os
import pathlib
import random
import re
import subprocess
import sys
import threading
import time
import uuid

import pytest
from tests.functional.waits import wait_for

MIRRORS = 64
READS = 32
CHUNKS = 160
CHUNK_BYTES = 256 * 1024
BLOCK_BYTES = 4096
PARKED = pathlib.Path(__file__).with_name('parked.py')
LOCAL_BYTES = 4 * 1024 * 1024


class Readers:
    """The process whose reads wait, and what has become of them."""

    def __init__(self, paths, first_chunk):
        self.process = subprocess.Popen(
            [sys.executable, str(PARKED)]
            + [str(CHUNK_BYTES), str(first_chunk), str(CHUNKS), str(READS)]
            + paths,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.chunks = json.loads(self.process.stdout.readline())
        self.ended = {}
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self):
        for line in self.process.stdout:
            answer = json.loads(line)
            self.ended[answer['path']] = answer

    def results(self, path):
        wait_for(lambda: path in self.ended, f'the reads of {path}')
        return self.ended[path]['results']

    def end(self):
        # Its reads have ended, or it would not.
        assert self.process.wait(30) == 0
        self._thread.join()


class Outage:
    """An agent with many disks, and the store as the test wants it."""

    def __init__(self, site):
        self.site = site
        self.content = random.Random(4).randbytes(2 * CHUNKS * CHUNK_BYTES)
        self.image = site.image(self.content)
        self.agent = site.start()
        self.keys = [(str(uuid.uuid4()), 'disk') for _ in range(MIRRORS)]
        self.paths = [self.attach(key, self.image) for key in self.keys]
        # Of another image, so that no chunk of the first is here.
        self.here = random.Random(5).randbytes(LOCAL_BYTES)
        own = str(uuid.uuid4()), 'disk'
        self.local = self.attach(own, site.image(self.here))
        with open(self.local, 'r+b', buffering=0) as file:
            file.write(self.here)
            os.fsync(file.fileno())

    def attach(self, key, image):
        return self.agent.attach(*key, clone_blob=image)['path']

    def expected(self, chunks):
        """The digest that reads of these chunks must have."""
        digest = hashlib.sha256()
        for chunk in chunks:
            start = chunk * CHUNK_BYTES
            digest.update(self.content[start : start + BLOCK_BYTES])
        return digest.hexdigest()

    def waiting(self):
        return self.agent.status()['engine']['waiting_chunks_now']

    def metric(self, name):
        text = self.metrics()
        found = re.search(rf'^{name} (\S+)$', text, re.MULTILINE)
        assert found, name
        return float(found.group(1))

    def metrics(self):
        return self.agent.metrics()

    def quiet_latencies(self, rounds=6):
        """Median and p99 of local reads, in seconds; of the best round.

        What else the machine does comes and goes; a disk that waits does not.
        """
        found = [self.latencies() for _ in range(rounds)]
        return [
            min(each[int(share * len(each))] for each in found)
            for share in (0.5, 0.99)
        ]

    def latencies(self, count=400):
        """Seconds of random local reads, in order."""
        chance = random.Random(7)
        seconds = []
        descriptor = os.open(self.local, os.O_RDONLY | os.O_DIRECT)
        try:
            with mmap.mmap(-1, BLOCK_BYTES) as block:
                for _ in range(count):
                    at = chance.randrange(0, LOCAL_BYTES, BLOCK_BYTES)
                    started = time.perf_counter()
                    assert os.preadv(descriptor, [block], at) == len(block)
                    seconds.append(time.perf_counter() - started)
                    assert block[:] == self.here[at : at + len(block)]
        finally:
            os.close(descriptor)
        return sorted(seconds)


@pytest.fixture(scope='module')
def lasting_outage(lasting_site):
    lasting_site.more['OS_AGENT__STORE_ALARM_SECONDS'] = '1'
    return Outage(lasting_site)


@pytest.fixture
def outage(lasting_outage):
    yield lasting_outage
    site = lasting_outage.site
    for name in ('store-hangs', 'store-away'):
        with contextlib.suppress(FileNotFoundError):
            site.untell(name)


@contextlib.contextmanager
def away(outage, fault, first_chunk):
    """The store is away; every read of every disk waits."""
    outage.site.tell(fault)
    readers = Readers(outage.paths, first_chunk)
    wait_for(lambda: outage.waiting() == MIRRORS * READS, 'all to wait')
    wait_for(lambda: outage.agent.status()['store_away'], 'the alarm')
    assert outage.metric('lazyimage_store_available') == 0
    yield readers
    outage.site.untell(fault)
    readers.end()
    assert not outage.agent.status()['store_away']
    assert outage.metric('lazyimage_store_available') == 1
    assert outage.metric('lazyimage_engine_waiting_chunks_now') == 0


def has_read(outage, readers, path):
    assert set(readers.results(path)) == {BLOCK_BYTES}
    assert readers.ended[path]['digest'] == outage.expected(
        readers.chunks[path]
    )


@pytest.mark.timeout(180)
def test_a_store_that_refuses_is_told_once_and_all_goes_on(outage):
    with away(outage, 'store-away', 0) as readers:
        assert outage.metric('lazyimage_engine_waiting_chunks_now') == (
            MIRRORS * READS
        )
        told = outage.agent.mirror(*outage.keys[5])
        assert told['waiting'] == READS
        assert len(told['waits']) == READS
        assert {wait['reason'] for wait in told['waits']} == {'chunks'}
        assert {wait['chunk'] for wait in told['waits']} == set(
            readers.chunks[outage.paths[5]]
        )
        newest = told['waits'][-1]['seconds']
        assert told['oldest_wait_seconds'] >= newest > 0
        assert not readers.ended
    started = time.monotonic()
    for path in outage.paths:
        has_read(outage, readers, path)
    print(f'all was read {time.monotonic() - started:.1f} s after the outage')
    # One alarm each of the agent and the engine, whatever number waited.
    log = outage.site.log()
    assert log.count('The chunk store does not answer') == 1
    assert log.count('could not be fetched') == 1
    assert 'The chunk store answers again' in log


@pytest.mark.timeout(180)
def test_64_disks_wait_for_a_silent_store_and_nobody_else_does(outage):
    before = outage.quiet_latencies()
    with away(outage, 'store-hangs', CHUNKS) as readers:
        # Whose bytes are here does not notice.
        during = outage.quiet_latencies()
        for was, now in zip(before, during, strict=True):
            print(f'{was * 1e6:.0f} us, in the outage {now * 1e6:.0f} us')
            assert now < 3 * was + 0.005
        with open(outage.local, 'r+b') as file:
            file.write(b'written in the outage')
            os.fsync(file.fileno())
        # Each of them can be stopped and deleted.
        doomed = list(zip(outage.keys, outage.paths, strict=True))[8:]
        for key, path in doomed:
            started = time.monotonic()
            outage.agent.end_misses(*key)
            assert set(readers.results(path)) == {-errno.EIO}
            outage.agent.release(*key)
            assert time.monotonic() - started < 5
            assert not os.path.exists(path)
        assert outage.waiting() == 8 * READS
        assert not set(readers.ended) & set(outage.paths[:8])
    # The others go on by themselves.
    for path in outage.paths[:8]:
        has_read(outage, readers, path)


@pytest.mark.timeout(120)
def test_a_finite_time_out_ends_those_reads_only(site, noise, key):
    site.more['OS_AGENT__FETCH_TIMEOUT_SECONDS'] = '2'
    site.more['OS_AGENT__SLOW_REQUEST_SECONDS'] = '0.5'
    agent = site.start()
    data = noise(8 * CHUNK_BYTES)
    path = agent.attach(*key, clone_blob=site.image(data))['path']
    with open(path, 'r+b', buffering=0) as file:
        descriptor = file.fileno()
        here = 2 * CHUNK_BYTES
        assert os.pread(descriptor, 4096, here) == data[here : here + 4096]
        site.tell('store-away')
        away = 3 * CHUNK_BYTES
        started = time.monotonic()
        with pytest.raises(OSError) as caught:
            os.pread(descriptor, 4096, away)
        assert caught.value.errno == errno.EIO
        assert 2 <= time.monotonic() - started < 6
        # What is here is read, and written blocks need no chunk.
        assert os.pread(descriptor, 4096, here) == data[here : here + 4096]
        assert os.pwrite(descriptor, b'w' * 4096, away) == 4096
        os.fsync(descriptor)
        assert os.pread(descriptor, 4096, away) == b'w' * 4096
        site.untell('store-away')
        assert (
            os.pread(descriptor, 4096, away + 4096)
            == data[away + 4096 : away + 8192]
        )
    slow = re.search('Slow request: .*', site.log())
    assert slow, site.log()
    for words in (
        f'instance={key[0]} disk=disk operation=read offset={away}',
        'chunk=3 source=fetch digest=',
        f'errno={errno.EIO}',
    ):
        assert words in slow.group()
    assert agent.mirror(*key)['reads'] >= 5
