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
"""Two agents that were told to use the same places."""

import subprocess
import uuid

import pytest

from lazyblob import repository
from nova_lazyimage.agent import client
from tests.functional import waits

MIB = 1024 * 1024
OPTIONS = ('state_directory', 'run_directory', 'socket', 'mount_root')


def places_of(folder):
    """Where an agent has everything below one folder."""
    return {
        'state_directory': folder / 'state',
        'run_directory': folder / 'run',
        'socket': folder / 'agent.sock',
        'mount_root': folder / 'state' / 'mnt',
    }


def configuration(site, path, places):
    """A file for an agent on the site's repository."""
    path.parent.mkdir(exist_ok=True)
    chunks, catalog = repository.urls_of(site.url)
    lines = ''.join(f'{name} = {place}\n' for name, place in places.items())
    path.write_text(
        f'[repository]\nchunk_store = {chunks}\ncatalog = {catalog}\n'
        f'[agent]\nuser =\nsocket_group =\n{lines}'
    )
    return ['--config-file', str(path)]


@pytest.fixture
def first(site):
    """An agent with a disk that is open."""
    places = places_of(site.folder / 'first')
    site.arguments = configuration(
        site, site.folder / 'first' / 'lazyimage.conf', places
    )
    site.client = client.AgentClient(str(places['socket']), 20)
    site.start()
    yield places
    site.agent.kill()
    waits.unmount(places['mount_root'])


def run_second(site, arguments):
    """What another agent says at its end."""
    program = site.agent.process.args[:2]
    return subprocess.run(
        [*program, *arguments],
        env=site.environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize('option', OPTIONS)
def test_a_second_agent_is_refused_and_the_first_goes_on(
    site, first, noise, option
):
    data = noise(MIB)
    instance = str(uuid.uuid4())
    image = site.image(data)
    path = site.client.attach(instance, 'disk', clone_blob=image)['path']
    folder = site.folder / 'second'
    places = {**places_of(folder), option: first[option]}
    arguments = configuration(site, folder / 'lazyimage.conf', places)
    with open(path, 'r+b', buffering=0) as disk:
        second = run_second(site, arguments)
        assert second.returncode == 1, second.stderr
        pid = site.agent.process.pid
        for word in (option, f'"{first[option]}"', f'with pid {pid};'):
            assert word in second.stderr
        assert disk.read(4096) == data[:4096]
        disk.write(b'still there')
    # Not only what was attached: its interface is still its own.
    assert site.client.status()['mirrors'] == 1
    site.client.attach(str(uuid.uuid4()), 'disk', clone_blob=image)


def test_two_agents_of_one_host_share_nothing_and_both_serve(site, first):
    folder = site.folder / 'second'
    places = places_of(folder)
    # Each other's neighbours, and still not the same.
    places['mount_root'] = first['mount_root'].with_name('mnt2')
    places['socket'] = first['socket'].with_name('agent2.sock')
    site.arguments = configuration(site, folder / 'lazyimage.conf', places)
    agent, site.agent = site.agent, None
    before, site.client = (
        site.client,
        client.AgentClient(str(places['socket']), 20),
    )
    try:
        site.start()
        assert before.status()['ready']
        assert site.client.status()['ready']
    finally:
        second, site.agent = site.agent, agent
        if second is not None:
            second.kill()
        waits.unmount(places['mount_root'])


def test_a_place_is_free_when_its_agent_has_ended_however_it_did(site, first):
    site.kill()
    site.start()
    assert site.stop() == 0
    site.start()
    assert site.client.status()['ready']
