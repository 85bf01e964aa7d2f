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
"""A COMMIT that ends at any step leaves what it held dirty, whole.

Every step that a COMMIT takes beside the engine (the seal, writes of the
journal, calls of store and catalog) is made to fail, or the agent is killed
there, one step after the other until a COMMIT takes none any more. The same
with the engine's own steps while the guest writes: each call that it makes on
the mirror's files, before and after (mirror/tests/crash has those in memory).
"""

import os
import pathlib
import signal
import subprocess
import threading
import time
import uuid

import pytest

from nova_lazyimage.agent import client
from tests.functional.agent import takeover
from tests.functional.agent.files import read
from tests.functional.agent.files import write

MIB = 1024 * 1024
CHUNK_BYTES = 256 * 1024
# In CI the agent is killed at every third step, a different third each time.
EVERY = 1 if os.environ.get('LAZYIMAGE_SOAK') else 3
# The same of the engine's.
EVERY_CALL = 1 if os.environ.get('LAZYIMAGE_SOAK') else 12
DYING = pathlib.Path(__file__).with_name('dying.c')


class Steps:
    """COMMITs of one disk, each with its fault."""

    def __init__(self, site, key, noise):
        self.site, self.key = site, key
        self.agent = site.start()
        self.path = self.agent.attach(
            *key, clone_blob=site.image(noise(2 * MIB))
        )['path']
        self.round = 0
        self.seen = []

    def try_step(self, number, action):
        """Whether a COMMIT reaches so many steps."""
        site = self.site
        self.round += 1
        write(self.path, CHUNK_BYTES, b'%d' % self.round)
        write(self.path, 3 * CHUNK_BYTES, b'%d' % self.round)
        disk, dirty_bytes = read(self.path), self.dirty_bytes()
        commit_id, image = str(uuid.uuid4()), str(uuid.uuid4())
        site.tell('step', f'{number} {action}')
        state = self.commit(commit_id, image)
        if state == 'died':
            site.agent.process.wait(20)
            site.kill()
            self.agent = site.start()
            state = self.commit_state(commit_id)
        reached = not (site.faults / 'step').exists()
        if reached:
            step = (site.faults / 'stepped').read_text()
            self.seen.append(f'{step}: {state}')
        else:
            site.untell('step')
            assert state == 'published'
        assert read(self.path) == disk, self.seen[-1]
        if image in site.blobs():
            # It stands, though its location may not be had.
            assert site.read(image) == disk, self.seen[-1]
        else:
            assert state != 'published', self.seen[-1]
            # Whole: not a block less than before.
            assert self.dirty_bytes() >= dirty_bytes, self.seen[-1]
        again = str(uuid.uuid4())
        site.commit(self.key, again)
        assert site.read(again) == disk, self.seen[-1]
        assert self.dirty_bytes() == 0
        return reached

    def dirty_bytes(self):
        return self.agent.mirror(*self.key)['dirty_bytes']

    def commit(self, commit_id, image):
        try:
            self.agent.commit(*self.key, commit_id=commit_id, image_id=image)
        except client.AgentUnavailable:
            return 'died'
        except client.AgentError as exc:
            return exc.code
        return self.commit_state(commit_id)

    def commit_state(self, commit_id):
        until = time.monotonic() + 40
        while time.monotonic() < until:
            try:
                state = self.agent.commit_state(*self.key, commit_id)
            except client.AgentUnavailable:
                return 'died'
            except client.NotFound:
                return 'unknown'
            if state['state'] == 'published':
                return 'published'
            if state['state'] == 'failed':
                return state['error']['code']
            time.sleep(0.02)
        raise AssertionError(f'it does not end: {self.site.log()}')


def test_whatever_fails_leaves_the_dirty_state_whole(site, noise, key):
    steps = Steps(site, key, noise)
    number = 1
    while steps.try_step(number, 'fail'):
        number += 1
    print('\n'.join(steps.seen))
    # All kinds of steps, and no COMMIT that hides one.
    for kind in ('seal', 'write', 'store.put', 'store.sync', 'publish'):
        assert any(kind in step for step in steps.seen), kind
    assert 'after catalog.publish: published' in steps.seen
    assert 'before catalog.publish: Conflict' in steps.seen
    assert 'before store.put: StoreFull' in steps.seen


@pytest.mark.soak
def test_wherever_the_agent_dies_the_dirty_state_is_whole(site, noise, key):
    steps = Steps(site, key, noise)
    number = 1 + int(time.time()) % EVERY
    while steps.try_step(number, 'kill'):
        number += EVERY
    print('\n'.join(steps.seen))
    states = {step.partition(': ')[2] for step in steps.seen}
    assert states <= {'published', 'Interrupted', 'unknown'}
    assert len(steps.seen) > 20 / EVERY


@pytest.mark.parametrize('fault', ['catalog-mute', 'catalog-away'])
def test_an_agent_that_stops_before_it_knows_asks_at_its_next_start(
    site, noise, key, fault
):
    agent = site.start()
    path = agent.attach(*key, clone_blob=site.image(noise(MIB)))['path']
    write(path, 0, b'written')
    disk = read(path)
    site.tell('store-slow', '1')
    image, commit_id = str(uuid.uuid4()), str(uuid.uuid4())
    agent.commit(*key, commit_id=commit_id, image_id=image)
    time.sleep(0.3)  # its session is open by now
    site.tell(fault)
    until = time.monotonic() + 20
    while 'outcome of commit' not in site.log():
        assert time.monotonic() < until
        time.sleep(0.05)
    site.agent.process.send_signal(signal.SIGTERM)
    assert site.agent.process.wait(30) == 0
    site.untell(fault)
    agent = site.start()
    until = time.monotonic() + 20
    while True:
        state = agent.commit_state(*key, commit_id)
        if state['state'] != 'sealed':
            break
        assert time.monotonic() < until
        time.sleep(0.05)
    if fault == 'catalog-mute':
        assert (state['state'], state['version']) == ('published', 2)
        assert site.read(image) == disk
    else:
        assert state['error']['code'] == 'Interrupted'
    site.untell('store-slow')
    again = str(uuid.uuid4())
    site.commit(key, again)
    assert site.read(again) == disk


class Guest(threading.Thread):
    """Writes, discards and flushes; each waits for an agent that serves."""

    def __init__(self, path, content, number):
        super().__init__(name='guest')
        self.path, self.content, self.number = path, content, number
        self.error = None
        self.start()

    def run(self):
        try:
            self.change()
        except OSError as exc:
            self.error = exc

    def change(self):
        # Chunks that are frozen, blocks that are and are not, and another.
        with open(self.path, 'r+b', buffering=0) as file:
            for offset in (
                CHUNK_BYTES,
                CHUNK_BYTES + 8 * 4096 + 100,
                3 * CHUNK_BYTES + 4096,
                5 * CHUNK_BYTES,
            ):
                data = b'guest %d' % self.number
                file.seek(offset)
                file.write(data)
                self.content[offset : offset + len(data)] = data
            os.fsync(file.fileno())
        offset = 6 * CHUNK_BYTES
        subprocess.run(
            ['fallocate', '-p', '-o', str(offset), '-l', '8192', self.path],
            check=True,
        )
        self.content[offset : offset + 8192] = bytes(8192)


class EngineSteps:
    """COMMITs of one disk whose guest writes; the engine dies in each."""

    FROZEN = (1, 3, 7)
    CHANGED = (1, 3, 5, 6)

    def __init__(self, site, kept, key, noise):
        self.site, self.kept, self.key = site, kept, key
        image = site.image(noise(2 * MIB))
        self.path = kept.client.attach(*key, clone_blob=image)['path']
        self.content = bytearray(read(self.path))
        self.seen = []
        self.round = 0

    def fill(self):
        self.round += 1
        for chunk in self.FROZEN:
            data = (b'%d.%d ' % (self.round, chunk)) * 2000
            write(self.path, chunk * CHUNK_BYTES, data)
            start = chunk * CHUNK_BYTES
            self.content[start : start + len(data)] = data

    def try_step(self, number):
        """Whether a COMMIT reaches so many steps."""
        site, agent = self.site, self.kept.client
        self.fill()
        frozen = bytes(self.content)
        stepped = site.faults / 'engine-stepped'
        stepped.unlink(missing_ok=True)
        site.tell('engine-step', str(number))
        commit_id, image = str(uuid.uuid4()), str(uuid.uuid4())
        try:
            agent.commit(*self.key, commit_id=commit_id, image_id=image)
        except client.AgentUnavailable:
            assert stepped.exists(), self.kept.said()
        guest = Guest(self.path, self.content, self.round)
        state = self.state(commit_id, stepped)
        guest.join(30)
        assert not guest.is_alive(), self.kept.said()
        assert guest.error is None
        reached = stepped.exists()
        if reached:
            found = self.kept.wait_until_ready()
            assert found['resumed'], self.kept.said()
            state = self.state(commit_id, None)
            self.seen.append(f'{stepped.read_text()}: {state}')
            # Not at the end: all of them take minutes.
            print(f'{number}: {self.seen[-1]}', flush=True)
        else:
            # The next seal ends the count.
            site.tell('engine-step', '0')
        assert read(self.path) == self.content, self.seen[-1]
        changed = set(self.CHANGED)
        if state == 'published':
            assert site.read(image) == frozen, self.seen[-1]
        else:
            assert image not in site.blobs(), self.seen[-1]
            changed |= set(self.FROZEN)
        # What is left, and no more than what the one that died had taken.
        again = str(uuid.uuid4())
        total_bytes = site.commit(self.key, again)['total_bytes']
        assert total_bytes >= len(changed) * CHUNK_BYTES, self.seen[-1]
        changed |= set(self.FROZEN)
        assert total_bytes <= len(changed) * CHUNK_BYTES, self.seen[-1]
        assert site.read(again) == self.content, self.seen[-1]
        assert agent.mirror(*self.key)['dirty_bytes'] == 0
        return reached

    def state(self, commit_id, stepped):
        """How it ended; nothing if the agent dies before."""
        until = time.monotonic() + 40
        while time.monotonic() < until:
            try:
                state = self.kept.client.commit_state(*self.key, commit_id)
            except client.AgentUnavailable:
                if stepped is not None and stepped.exists():
                    return ''
            except client.NotFound:
                return 'unknown'
            else:
                if state['state'] == 'failed':
                    return state['error']['code']
                if state['state'] == 'published':
                    return 'published'
            if stepped is not None and stepped.exists():
                return ''
            time.sleep(0.01)
        raise AssertionError(f'it does not end: {self.kept.said()}')


@pytest.mark.soak
@pytest.mark.timeout(0 if EVERY_CALL == 1 else 600)
def test_wherever_the_engine_dies_its_successor_has_the_whole_dirty_state(
    site, noise, key, tmp_path
):
    library = tmp_path / 'dying.so'
    command = ['gcc', '-shared', '-fPIC', '-Wall', '-Werror', '-O1']
    subprocess.run([*command, '-o', library, DYING, '-ldl'], check=True)
    site.more['LD_PRELOAD'] = str(library)
    steps = EngineSteps(site, takeover.Kept(site), key, noise)
    # So that the guest's changes come while chunks are still frozen.
    site.tell('store-slow', '0.03')
    number = 1 + int(time.time()) % EVERY_CALL
    while steps.try_step(number):
        number += EVERY_CALL
    print(f'the engine died {len(steps.seen)} times')
    states = {step.partition(': ')[2] for step in steps.seen}
    assert states <= {'published', 'Interrupted', 'unknown'}
    assert len(steps.seen) > 20 / EVERY_CALL
    if EVERY_CALL == 1:
        for name in ('saved.write', 'saved.punch', 'delta.write', 'map.sync'):
            assert any(name in step for step in steps.seen), name
