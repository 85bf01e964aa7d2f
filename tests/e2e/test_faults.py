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
"""Agent or conductor killed or absent: what is told, and what is left."""

import parts
import pytest
from cloud.api import ApiError
from cloud.tenant import until


@pytest.fixture(scope='module')
def server(lively):
    lively.ready()
    return lively


@pytest.fixture
def no_agent(cloud):
    """The agent dies as by a crash, and is back after the test."""
    cloud['lazyimage-agent'].kill()
    yield
    start_agent(cloud)


@pytest.fixture(scope='class')
def begun(cloud, demo, base, server):
    """A server asked for while the conductor is away.

    Glance gives up the byte that Nova asks it for after ten seconds.
    """
    cloud['lazyimage-conductor'].kill()
    yield demo.boot('never', base['id'])
    cloud['lazyimage-conductor'].start()
    until(answers, 60, 'the conductor to answer')


def start_agent(cloud):
    cloud['lazyimage-agent'].start()
    cloud['lazyimage-agent'].wait_ready()


def answers():
    try:
        return parts.blobs()
    except OSError:
        return None


@pytest.mark.expect_errors('Sizes of lazy disks are not known')
def test_an_agent_killed_meanwhile_serves_a_stopped_servers_disk_as_it_was(
    cloud, server
):
    server.act('os-stop', 'SHUTOFF')
    mirror = parts.mirror(server.id)
    disk = server.disk_digest()
    cloud['lazyimage-agent'].kill()
    start_agent(cloud)
    assert server.disk_digest() == disk
    assert parts.mirror(server.id)['attach_id'] == mirror['attach_id']
    server.tenant.action(server.id, 'os-start')
    server.came_back()


@pytest.fixture
def doomed(demo, base):
    """A server that is to be deleted while the agent is away."""
    server = demo.boot('doomed', base['id'])
    demo.wait_server(server)
    return server


@pytest.mark.expect_errors(
    'agent', 'Error updating resources', 'Instance failed to spawn'
)
def test_without_its_agent_a_server_is_deleted_and_nothing_is_left_later(
    cloud, demo, server, doomed
):
    server.act('os-stop', 'SHUTOFF')
    mirror = parts.mirror(doomed)
    tombstone = parts.STATE / 'released' / doomed
    local = parts.STATE / 'mirrors' / mirror['attach_id']
    assert local.exists()
    cloud['lazyimage-agent'].kill()
    try:
        demo.delete_server(doomed)
        assert tombstone.exists()
        assert local.exists()
    finally:
        start_agent(cloud)
    assert (doomed, 'disk') not in parts.mirrors()
    assert not tombstone.exists()
    assert not local.exists()
    until(
        lambda: mirror['blob_id'] not in parts.blobs(),
        30,
        'the blob of the deleted server to go',
    )
    assert (server.id, 'disk') in parts.mirrors()


@pytest.mark.expect_errors('agent', 'Exhausted all hosts', 'No valid host')
def test_without_an_agent_a_new_server_ends_in_error_and_is_deleted(
    demo, base, no_agent
):
    server = demo.boot('never', base['id'])
    fault = demo.wait_server(server, 'ERROR')['fault']
    assert 'host' in fault['message'] or 'agent' in fault['message']
    demo.delete('nova', f'/servers/{server}')
    until(lambda: gone(demo, server), 60, 'the server to be gone')


def test_a_server_starts_again_after_its_agent_was_away(admin, server):
    server.tenant.action(server.id, 'os-start')
    server.came_back()
    alive = admin.get('nova', '/servers?all_tenants=1')['servers']
    assert {found for found, _ in parts.mirrors()} <= {
        entry['id'] for entry in alive
    }
    assert not list((parts.STATE / 'released').iterdir())


def gone(tenant, server):
    try:
        tenant.server(server)
    except ApiError as exc:
        return exc.status == 404
    return False


EXPECTED = (
    'conductor',
    'catalog',
    'Exhausted all hosts',
    'No valid host',
    'Snapshot',
    # Nova's clean-up asks for it, and only the conductor could.
    'Cannot drop blob',
    # Glance cannot serve the byte that Nova asks for.
    'Glance tried all active locations',
    'blob://',
)


def image_gone(tenant, image):
    try:
        return tenant.image(image)['status'] == 'deleted'
    except ApiError as exc:
        return exc.status == 404


@pytest.mark.expect_errors(*EXPECTED)
class TestWithoutConductor:
    def test_a_snapshot_fails_and_its_server_goes_on(
        self, demo, server, begun
    ):
        image = demo.snapshot(server.id, 'never')
        until(lambda: image_gone(demo, image), 90, 'the image to be gone')
        demo.wait_server(server.id)
        server.tenant.action(server.id, 'reboot', type='HARD')
        server.came_back()

    def test_a_new_server_ends_in_error(self, demo, begun):
        assert demo.wait_server(begun, 'ERROR')['fault']['message']
        demo.delete('nova', f'/servers/{begun}')
        until(lambda: gone(demo, begun), 60, 'the server to be gone')


def test_with_the_conductor_back_the_snapshot_is_made(demo, server):
    image = demo.snapshot(server.id, 'late')
    assert demo.wait_image(image)['size'] == 1 << 30
    demo.wait_server(server.id)
    demo.delete_image(image)
    assert image not in parts.blobs()
