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
"""Users, services, endpoints, flavors: what an operator registers once."""

from __future__ import annotations

from typing import Any

from cloud import settings
from cloud.api import ApiError
from cloud.api import Client

#: type, path of its endpoint
SERVICES = {
    'glance': ('image', ''),
    'placement': ('placement', ''),
    'nova': ('compute', '/v2.1'),
    'neutron': ('network', ''),
}

#: name, memory in MB, disk in GB
FLAVORS = (('tiny', 192, 1), ('small', 192, 3), ('big', 192, 4))


def register(client: Client) -> None:
    """Register what is missing; repeating it changes nothing."""
    have = client.get('keystone', '/services')['services']
    if any(service['type'] == 'network' for service in have):
        return
    roles = {
        role['name']: role['id']
        for role in client.get('keystone', '/roles')['roles']
    }
    project = _make(client, 'project', name='service', domain_id='default')
    for name, (kind, path) in SERVICES.items():
        service = _make(client, 'service', name=name, type=kind)
        for interface in ('public', 'internal', 'admin'):
            _make(
                client,
                'endpoint',
                service_id=service['id'],
                interface=interface,
                region_id=settings.REGION,
                url=settings.url(name, path),
            )
        user = _user(client, name)
        for role in ('service', 'admin'):
            _grant(client, project, user, roles[role])
    # Two ordinary projects: one to play in, one that must see nothing of it.
    for name in ('demo', 'other'):
        project = _make(client, 'project', name=name, domain_id='default')
        _grant(client, project, _user(client, name), roles['member'])


def add_flavors(client: Client) -> None:
    """The flavors of the demo and the tests."""
    have = {
        flavor['name'] for flavor in client.get('nova', '/flavors')['flavors']
    }
    for name, memory, disk in FLAVORS:
        if name not in have:
            flavor = {'name': name, 'ram': memory, 'vcpus': 1, 'disk': disk}
            client.post('nova', '/flavors', {'flavor': flavor})


def _make(client: Client, kind: str, **fields: Any) -> Any:
    try:
        return client.post('keystone', f'/{kind}s', {kind: fields})[kind]
    except ApiError as exc:
        if exc.status != 409:
            raise
        found = client.get('keystone', f'/{kind}s?name={fields["name"]}')
        return found[f'{kind}s'][0]


def _user(client: Client, name: str) -> Any:
    return _make(
        client,
        'user',
        name=name,
        password=settings.PASSWORD,
        domain_id='default',
    )


def _grant(client: Client, project: Any, user: Any, role: str) -> None:
    client.call(
        'PUT',
        'keystone',
        f'/projects/{project["id"]}/users/{user["id"]}/roles/{role}',
    )
