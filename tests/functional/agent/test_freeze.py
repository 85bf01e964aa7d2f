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
"""Freezes that clients hold, and what a guest sees of them."""

import os
import threading
import time
import uuid

import pytest

from nova_lazyimage.agent import client
from tests.functional.agent.files import read
from tests.functional.agent.files import write

MIB = 1024 * 1024


class Writer(threading.Thread):
    """A guest's write that may have to wait."""

    def __init__(self, path, data):
        super().__init__(daemon=True)
        self.path, self.data = path, data
        self.start()

    def run(self):
        write(self.path, 0, self.data)


@pytest.fixture
def disk(site, noise, key):
    agent = site.start()
    path = agent.attach(*key, clone_blob=site.image(noise(MIB)))['path']
    write(path, 0, b'before')
    return path


def commit(agent, key, token):
    commit_id, image = str(uuid.uuid4()), str(uuid.uuid4())
    agent.commit(*key, commit_id=commit_id, image_id=image, token=token)
    agent.wait_for_commit(*key, commit_id, 30)
    return image


def test_a_commit_that_names_the_token_is_the_disk_at_its_freeze(
    site, key, disk
):
    agent, token = site.client, str(uuid.uuid4())
    before = read(disk)
    state = agent.freeze(*key, token, 15)
    assert (state['token'], state['state']) == (token, 'frozen')
    assert agent.mirror(*key)['frozen']
    writer = Writer(disk, b'after')
    time.sleep(0.3)
    assert writer.is_alive()
    assert read(disk) == before
    assert agent.freeze(*key, token, 15)['state'] == 'frozen'
    image = commit(agent, key, token)
    writer.join(10)
    assert read(disk)[:6] == b'aftere'
    assert site.read(image) == before
    assert not agent.mirror(*key)['frozen']
    assert agent.mirror(*key)['dirty_bytes'] == 4096


def test_a_freeze_ends_by_itself_and_its_token_seals_nothing(site, key, disk):
    agent, token = site.client, str(uuid.uuid4())
    started = time.monotonic()
    agent.freeze(*key, token, 1)
    writer = Writer(disk, b'after')
    writer.join(10)
    assert 0.9 < time.monotonic() - started < 3
    assert not agent.mirror(*key)['frozen']
    with pytest.raises(client.Conflict, match='for all of its 1 s') as caught:
        commit(agent, key, token)
    assert caught.value.code == 'FreezeExpired'
    with pytest.raises(client.Conflict) as caught:
        agent.freeze(*key, token, 1)
    assert caught.value.code == 'FreezeExpired'
    assert agent.thaw(*key, token)['state'] == 'thawed'
    metrics = agent.metrics()
    assert 'lazyimage_freeze_pause_seconds_count 1.0' in metrics
    assert 'lazyimage_freeze_pause_seconds_bucket{le="0.01"} 0.0' in metrics
    # It is as if nothing had been asked.
    assert site.read(commit(agent, key, None)) == read(disk)


def test_a_thaw_lets_the_guest_go_on(site, key, disk):
    agent, token = site.client, str(uuid.uuid4())
    agent.freeze(*key, token)
    writer = Writer(disk, b'after')
    with pytest.raises(client.Conflict, match='frozen'):
        commit(agent, key, None)
    with pytest.raises(client.Conflict, match='another token'):
        agent.freeze(*key, str(uuid.uuid4()))
    with pytest.raises(client.Conflict, match='never frozen') as caught:
        commit(agent, key, str(uuid.uuid4()))
    assert caught.value.code == 'FreezeExpired'
    assert agent.thaw(*key, str(uuid.uuid4()))['state'] == 'thawed'
    assert agent.mirror(*key)['frozen'], 'that was another token'
    agent.thaw(*key, token)
    writer.join(10)
    assert read(disk)[:5] == b'after'


@pytest.mark.parametrize('seconds', [0, -1, 21, '5', True])
def test_nobody_freezes_for_longer_than_guests_bear(site, key, disk, seconds):
    with pytest.raises(client.BadRequest, match='seconds'):
        site.client.freeze(*key, str(uuid.uuid4()), seconds)


def test_an_agent_that_dies_has_thawed(site, key, disk):
    token = str(uuid.uuid4())
    site.client.freeze(*key, token, 20)
    agent = site.restart_killed()
    with pytest.raises(client.Conflict, match='restarted'):
        commit(agent, key, token)
    write(agent.mirror(*key)['path'], 0, b'after')
    assert site.read(commit(agent, key, None)) == read(disk)


def test_a_frozen_disk_is_released_at_once(site, key, disk):
    agent = site.client
    agent.freeze(*key, str(uuid.uuid4()), 20)
    started = time.monotonic()
    agent.release(*key)
    assert time.monotonic() - started < 5


class TestSpace:
    def test_what_is_discarded_frees_space_and_is_a_hole_of_the_version(
        self, site, noise, key
    ):
        agent = site.start()
        data = bytes(256 * 1024) + noise(2 * MIB)[256 * 1024 :]
        path = agent.attach(*key, clone_blob=site.image(data))['path']
        write(path, MIB, os.urandom(MIB))
        with open(path, 'rb') as file:
            os.fsync(file.fileno())
        before = self.blocks(path)
        # util-linux's own; Python has no fallocate with a mode.
        os.system(f'fallocate -p -o {MIB} -l {MIB // 2} {path}')
        time.sleep(1.1)  # the kernel believes old attributes so long
        assert before - self.blocks(path) == MIB // 2 // 512
        disk = read(path)
        assert disk[MIB : MIB + MIB // 2] == bytes(MIB // 2)
        image, commit_id = str(uuid.uuid4()), str(uuid.uuid4())
        agent.commit(*key, commit_id=commit_id, image_id=image)
        state = agent.wait_for_commit(*key, commit_id, 30)
        assert state['statistics']['zero_chunks'] == 2
        assert state['statistics']['stored_chunks'] == 2
        assert site.read(image) == disk
        version = site.repository.catalog.version(image)
        blob = site.repository.catalog.get(image)
        manifest = site.repository.manifest(version.root, blob.scope)
        assert [manifest.get(chunk) is None for chunk in range(4, 8)] == [
            True,
            True,
            False,
            False,
        ]

    @staticmethod
    def blocks(path):
        return os.stat(path).st_blocks

    def test_a_disk_grows_while_it_is_open_and_committed(
        self, site, noise, key
    ):
        agent = site.start()
        path = agent.attach(*key, clone_blob=site.image(noise(MIB)))['path']
        write(path, 0, b'before')
        site.tell('store-slow', '1')
        with open(path, 'r+b', buffering=0) as file:
            first, commit_id = str(uuid.uuid4()), str(uuid.uuid4())
            frozen = read(path)
            agent.commit(*key, commit_id=commit_id, image_id=first)
            agent.grow(*key, 3 * MIB + 512)
            assert os.fstat(file.fileno()).st_size == 3 * MIB + 512
            file.seek(3 * MIB)
            file.write(b'x' * 512)
        agent.wait_for_commit(*key, commit_id, 30)
        assert site.read(first) == frozen
        second = str(uuid.uuid4())
        site.commit(key, second)
        assert site.read(second) == read(path)
        assert len(site.read(second)) == 3 * MIB + 512
