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
"""Which worker answers: see the head of ``mirror/src/fuse/serve.rs``."""

import concurrent.futures
import mmap
import os
import pathlib

import pytest

BLOCK = 4096
READS = 400


def sleeps_of(process):
    """How often each worker has slept: at least once a request it took."""
    found = {}
    for task in pathlib.Path(f'/proc/{process.popen.pid}/task').iterdir():
        status = (task / 'status').read_text().splitlines()
        fields = dict(line.split(':', 1) for line in status)
        if fields['Name'].strip().startswith('fuse-'):
            found[task.name] = int(fields['voluntary_ctxt_switches'])
    return found


@pytest.fixture
def read(served):
    """Reads a block past the page cache."""
    fd = os.open(served.path, os.O_RDONLY | os.O_DIRECT)

    def one(block):
        room = mmap.mmap(-1, BLOCK)
        assert os.preadv(fd, [room], block * BLOCK) == BLOCK
        return room[:]

    yield one
    os.close(fd)


def test_one_request_at_a_time_meets_the_same_worker(served, read):
    read(0)
    before = sleeps_of(served.process)
    for _ in range(READS):
        read(0)
    after = sleeps_of(served.process)
    slept = sorted(after[task] - before[task] for task in before)
    assert slept[-1] >= READS / 2, slept


def test_many_at_a_time_meet_all(served, read):
    blocks = len(served.content) // BLOCK
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        for number, found in enumerate(pool.map(read, range(blocks))):
            at = number * BLOCK
            assert found == served.content[at : at + BLOCK], number
        before = sleeps_of(served.process)
        list(pool.map(read, [number % blocks for number in range(1000)]))
    after = sleeps_of(served.process)
    idle = [task for task in before if after[task] == before[task]]
    assert not idle, (before, after)
