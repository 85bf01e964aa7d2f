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
there, one step after the other until a COMMIT takes none any more.
"""

import os
import signal
import time
import uuid

import pytest

from nova_lazyimage.agent import client
from tests.functional.agent.files import read
from tests.functional.agent.files import write

MIB = 1024 * 1024
CHUNK_BYTES = 256 * 1024
# In CI the agent is killed at every third step, a different third each time.
EVERY = 1 if os.environ.get('LAZYIMAGE_SOAK') else 3


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
