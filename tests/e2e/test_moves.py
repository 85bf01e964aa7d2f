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
"""What moves a server is refused, clearly, and the server is unharmed.

A second nova-compute, whose driver is Nova's fake one, is the host that
servers could move to and from.
"""

import pathlib

import parts
import pytest
from cloud import services
from cloud import settings
from cloud.api import ApiError
from cloud.process import Service
from cloud.tenant import until

SECOND = 'second'


@pytest.fixture(scope='module')
def second(cloud, admin):
    """Another host; removed at the end."""
    path = pathlib.Path('/etc/nova/nova-second.conf')
    text = pathlib.Path('/etc/nova/nova-compute.conf').read_text()
    path.write_text(
        f'{text}\n[DEFAULT]\nhost = {SECOND}\n'
        'compute_driver = fake.MediumFakeDriver\n'
        'state_path = /var/lib/nova/second\n'
    )
    state = pathlib.Path('/var/lib/nova/second')
    services.database.own(state, 'nova')
    service = Service(
        'nova-second',
        [
            str(settings.OPENSTACK / 'bin/nova-compute'),
            '--config-file',
            str(path),
        ],
        user='nova',
        stop_seconds=8,
    )
    service.ready = lambda: bool(entry_of(admin, SECOND, state='up'))
    service.start()
    try:
        service.wait_ready()
        cell = ['nova-manage', 'cell_v2', 'discover_hosts']
        services.database.run('nova', *cell)
        until(lambda: has_room(admin), 60, 'the second host to have room')
        yield service
    finally:
        service.stop()
        entry = entry_of(admin, SECOND)
        if entry:
            admin.delete('nova', f'/os-services/{entry["id"]}')


def entry_of(admin, host, state=None):
    for entry in admin.get('nova', '/os-services')['services']:
        if (entry['binary'], entry['host']) == ('nova-compute', host):
            return entry if state in (None, entry['state']) else None
    return None


def has_room(admin):
    found = admin.get('placement', '/resource_providers?name=second')
    for provider in found['resource_providers']:
        path = f'/resource_providers/{provider["uuid"]}/inventories'
        return bool(admin.get('placement', path)['inventories'])
    return False


@pytest.fixture(scope='module')
def server(lively):
    lively.ready()
    return lively


@pytest.fixture
def unharmed(server):
    """The server runs on, from its disk, with its flavor."""
    before = server.tenant.server(server.id)
    attach_id = parts.mirror(server.id)['attach_id']
    yield
    after = server.tenant.wait_server(server.id)
    assert after['flavor'] == before['flavor']
    assert after['hostId'] == before['hostId']
    assert parts.mirror(server.id)['attach_id'] == attach_id
    assert server.lines()[-1][1] == server.marks


@pytest.mark.expect_errors('ResizeError', 'Resize error')
def test_a_resize_is_refused(admin, demo, server, unharmed):
    demo.action(server.id, 'resize', flavorRef=demo.flavors['big'])
    reason = parts.outcome(admin, server.id, 'resize')
    assert 'cannot be resized or migrated yet' in reason


@pytest.mark.expect_errors('ResizeError', 'Resize error')
def test_a_cold_migration_is_refused(admin, server, second, unharmed):
    admin.action(server.id, 'migrate', host=SECOND)
    reason = parts.outcome(admin, server.id, 'migrate')
    assert 'cannot be resized or migrated yet' in reason


@pytest.mark.expect_errors('MigrationPreCheckError', 'Migration pre-check')
def test_a_live_migration_is_refused(admin, server, second, unharmed):
    admin.action(
        server.id, 'os-migrateLive', host=SECOND, block_migration='auto'
    )
    reason = parts.outcome(admin, server.id, 'live-migration')
    assert reason


def test_an_evacuation_of_a_lazy_server_to_its_own_host_is_refused(
    admin, server, unharmed
):
    entry = entry_of(admin, settings.HOST)
    path = f'/os-services/{entry["id"]}'
    admin.call('PUT', 'nova', path, {'forced_down': True})
    try:
        with pytest.raises(ApiError) as refused:
            admin.action(server.id, 'evacuate', host=settings.HOST)
        assert refused.value.status == 400
    finally:
        admin.call('PUT', 'nova', path, {'forced_down': False})
        until(
            lambda: entry_of(admin, settings.HOST, state='up'),
            60,
            'the host to be up',
        )


@pytest.mark.expect_errors('evacuated', 'Evacuat')
def test_an_evacuation_to_a_lazy_host_is_refused(admin, base, second):
    """The server of the lost host keeps what it has, there."""
    flavor = next(
        entry['id']
        for entry in admin.get('nova', '/flavors')['flavors']
        if entry['name'] == 'tiny'
    )
    server = admin.post(
        'nova',
        '/servers',
        {
            'server': {
                'name': 'lost',
                'imageRef': base['id'],
                'flavorRef': flavor,
                'networks': 'none',
                'host': SECOND,
            }
        },
    )['server']['id']
    admin.wait_server(server)
    entry = entry_of(admin, SECOND)
    second.kill()
    path = f'/os-services/{entry["id"]}'
    admin.call('PUT', 'nova', path, {'forced_down': True})
    try:
        admin.post('nova', f'/servers/{server}/action', {'evacuate': {}})
        reason = parts.outcome(admin, server, 'evacuate')
        assert 'cannot be evacuated' in reason
        assert (server, 'disk') not in parts.mirrors()
    finally:
        # The fake host does not come back: Nova deletes without it.
        admin.delete_server(server)
