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
"""Who takes over waits until the dead agent's last write is over, and says so.

A write that is in the kernel when its agent is killed may still land. Here
its file system is frozen, so that it cannot, for as long as the test likes.
"""

import concurrent.futures
import contextlib
import os
import pathlib
import subprocess
import time

import pytest

from tests.functional.mirror import conftest
from tests.functional.mirror import test_takeover
from tests.functional.mirror.test_takeover import session  # noqa: F401

BLOCK = test_takeover.BLOCK
ALARM_SECONDS = 2.0


def alarm(engine, what):
    """The first alarm of that kind."""
    while True:
        event = engine.engine('next_event', timeout_seconds=5)
        assert event is not None, f'no alarm "{what}"'
        if event['kind'] == 'alarm' and what in event.get('what', ''):
            return event


def is_stuck(popen):
    """Whether a thread of a process sleeps so that no signal wakes it."""
    states = []
    for task in pathlib.Path(f'/proc/{popen.pid}/task').iterdir():
        text = (task / 'stat').read_text()
        states.append(text[text.rindex(')') + 2])
    return 'D' in states


@pytest.fixture
def small(tmp_path):
    """A file system that can be frozen."""
    file, at = tmp_path / 'small.img', tmp_path / 'small'
    with file.open('wb') as stream:
        stream.truncate(64 << 20)
    at.mkdir()
    subprocess.run(['mke2fs', '-q', '-F', '-t', 'ext4', file], check=True)
    subprocess.run(['mount', '-o', 'loop', file, at], check=True)
    yield at
    subprocess.run(
        ['fsfreeze', '--unfreeze', at], check=False, capture_output=True
    )
    # A server may still have its files there.
    subprocess.run(['umount', '--lazy', at], check=True)


@pytest.mark.parametrize('session', ['kept'], indirect=True)
def test_a_dead_agents_write_is_waited_for_and_its_process_named(
    session,  # noqa: F811
    small,
    rng,
):
    content = rng.randbytes(conftest.CHUNK_BYTES)
    folder = {'directory': str(small / 'mirror')}
    session.begin()
    path = session.attach(content, **folder)
    # Told once never to tell of a close again: else no process can be
    # started from here while there is no server.
    os.close(os.open(path, os.O_RDONLY))
    with (
        test_takeover.opened(path, os.O_DIRECT) as fd,
        concurrent.futures.ThreadPoolExecutor(2) as pool,
    ):
        test_takeover.write(fd, b'a' * BLOCK, 0)
        os.fsync(fd)
        subprocess.run(['fsfreeze', '--freeze', small], check=True)
        pending = pool.submit(test_takeover.write, fd, b'b' * BLOCK, 0)
        dead = session.process.popen
        conftest.wait_for(lambda: is_stuck(dead), 'the write')
        dead.kill()
        # The dead process has the lock of its chunk cache, too.
        (session.state / 'cache').rename(session.state / 'old-cache')
        session.open_another()
        resumed = pool.submit(session.resume_here)
        time.sleep(ALARM_SECONDS + 0.3)
        assert not resumed.done(), 'it did not wait for the write'
        assert not pending.done()
        subprocess.run(['fsfreeze', '--unfreeze', small], check=True)
        resumed.result(20)
        dead.wait(20)
        event = alarm(session, 'another process that serves')
        assert event['holder'].startswith(f'pid {dead.pid} (')
        session.attach(content, create=False, **folder)
        session.engine('serve')
        pending.result(20)
        assert test_takeover.read(fd, BLOCK, 0) == b'b' * BLOCK


def test_a_disk_that_another_process_serves_is_waited_for(
    engine, tmp_path, rng
):
    content = rng.randbytes(conftest.CHUNK_BYTES)
    engine.attach(content)
    other = type(engine)(tmp_path / 'other')
    other.start(session='session-2')
    # Its calls are answered by now: what is waited for below is the fence.
    files = {
        'directory': str(engine.state / 'mirror-disk'),
        'live_map': str(engine.state / 'live' / 'disk'),
    }
    try:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            attached = pool.submit(
                other.attach, content, create=False, **files
            )
            time.sleep(ALARM_SECONDS + 0.3)
            assert not attached.done()
            engine.process.kill()
            path = attached.result(20)
        event = alarm(other, "another process's requests")
        # It has ended: its name may be gone, its number is not.
        assert event['holder'].startswith(f'pid {engine.process.popen.pid}')
        assert event['disk'] == 'disk'
        assert path.read_bytes() == content
    finally:
        with contextlib.suppress(ProcessLookupError):
            other.process.end()
