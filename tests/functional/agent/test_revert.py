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
"""A disk is a version of its blob again."""

import signal
import uuid

import pytest

from nova_lazyimage.agent import client
from tests.functional.agent.files import read
from tests.functional.agent.files import write

MIB = 1024 * 1024


@pytest.fixture
def disk(site, noise, key):
    """A disk with three versions, and something that is in none."""
    agent = site.start()
    mirror = agent.attach(
        *key, clone_blob=site.image(noise(MIB)), size_bytes=2 * MIB
    )
    path = mirror['path']
    versions = {1: read(path)}
    write(path, 0, b'second')
    site.commit(key)
    versions[2] = read(path)
    write(path, MIB, b'lost')
    return path, versions


def test_a_disk_is_its_last_version_or_its_first_again(site, key, disk):
    path, versions = disk
    agent = site.client
    for number in (2, 1, 2):
        mirror = agent.revert(*key, number)
        assert (mirror['parent'], mirror['base']) == (number, number)
        assert (mirror['dirty_bytes'], mirror['local_bytes']) == (0, 0)
        assert read(path) == versions[number]
        write(path, MIB, b'lost again')
    agent.revert(*key, 1)
    # The next version follows the newest, and is what the disk is.
    write(path, 4096, b'third')
    image = str(uuid.uuid4())
    state = site.commit(key, image)
    assert state['version'] == 3
    assert state['total_bytes'] == 256 * 1024
    assert site.read(image) == read(path)
    assert read(path)[:6] == versions[1][:6]
    write(path, 8192, b'fourth')
    image = str(uuid.uuid4())
    assert site.commit(key, image)['version'] == 4
    assert site.read(image) == read(path)
    assert agent.revert(*key, 4)['parent'] == 4
    assert site.read(image) == read(path)


def test_a_reverted_disk_is_served_again_after_a_kill_and_a_stop(
    site, key, disk
):
    path, versions = disk
    site.client.revert(*key, 1)
    write(path, 0, b'newer')
    expected = read(path)
    assert expected[5:] == versions[1][5:]
    site.restart_killed()
    assert read(path) == expected
    site.stop()
    site.start()
    assert read(path) == expected
    assert site.client.mirror(*key)['dirty_bytes'] == 4096
    site.client.release(*key)
    assert site.left() == []


def test_a_disk_that_is_open_is_not_reverted(site, key, disk):
    path, versions = disk
    with open(path, 'rb'):
        with pytest.raises(client.Conflict, match='is open'):
            site.client.revert(*key, 1)
    site.client.revert(*key, 1)
    assert read(path) == versions[1]


def test_a_version_that_is_gone_changes_nothing(site, key, disk):
    path, _versions = disk
    expected = read(path)
    with pytest.raises(client.NotFound):
        site.client.revert(*key, 9)
    site.tell('catalog-away')
    with pytest.raises(client.RepositoryUnavailable):
        site.client.revert(*key, 1)
    site.untell('catalog-away')
    assert read(path) == expected
    image = str(uuid.uuid4())
    site.commit(key, image)
    assert site.read(image) == expected


def test_a_revert_that_dies_or_fails_at_its_journal_leaves_one_of_both(
    site, key, disk
):
    path, versions = disk
    expected, newest = read(path), 2
    # The manifest may be there already: then the journal is the first.
    for number, action in ((1, 'fail'), (2, 'fail'), (1, 'kill'), (2, 'kill')):
        site.tell('step', f'{number} {action}')
        try:
            site.client.revert(*key, 1)
        except client.AgentUnavailable:
            assert site.agent.process.wait(20) == -signal.SIGKILL
            site.kill()
            site.start()
        except client.AgentError:
            pass
        found = read(path)
        assert found in (expected, versions[1]), (number, action)
        if (site.state / 'mirrors').exists():
            folders = list((site.state / 'mirrors').iterdir())
            assert len(folders) == 1, folders
        if found != expected:
            site.client.revert(*key, newest)
            write(path, MIB, b'lost')
            assert read(path) == expected
        image = str(uuid.uuid4())
        newest = site.commit(key, image)['version']
        assert site.read(image) == expected
