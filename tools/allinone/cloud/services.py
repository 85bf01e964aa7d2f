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
"""The services: how each is started, as whom, and when it is ready."""

from __future__ import annotations

import datetime
import math
import pathlib
import signal
import socket

from cloud import agent
from cloud import api
from cloud import database
from cloud import engine
from cloud import settings
from cloud.process import Service

#: Nova's long-running parts, as "openstack compute service list" names them.
NOVA_PARTS = ('nova-conductor', 'nova-scheduler', 'nova-compute')
CONDUCTORS = ('lazyimage-conductor', 'lazyimage-conductor-2')
ADMIN = api.Client()


def listens(service: str) -> bool:
    """Whether something accepts connections at a service's port."""
    address = (settings.ADDRESS, settings.PORTS[service])
    with socket.create_connection(address, timeout=2):
        return True


def mariadb_ready() -> bool:
    return listens('mariadb')


def mariadb() -> Service:
    """The database server, for the services and our catalog."""
    run = '/run/mysqld'
    return Service(
        'mariadb',
        [
            '/usr/sbin/mariadbd',
            '--no-defaults',
            '--datadir=/var/lib/mysql',
            f'--socket={run}/mysqld.sock',
            f'--pid-file={run}/mysqld.pid',
            f'--bind-address={settings.ADDRESS}',
            f'--port={settings.PORTS["mariadb"]}',
            '--max-connections=400',
            '--innodb-buffer-pool-size=192M',
            '--innodb-log-file-size=48M',
            '--innodb-flush-log-at-trx-commit=1',
            '--skip-name-resolve',
            # On since 11.6; OpenStack expects repeatable read as it was.
            '--innodb-snapshot-isolation=OFF',
            '--skip-log-bin',
            '--performance-schema=OFF',
        ],
        user='mysql',
        ready=mariadb_ready,
        stop_seconds=30,
    )


def rabbitmq() -> Service:
    home = '/var/lib/rabbitmq'
    return Service(
        'rabbitmq',
        ['/usr/lib/rabbitmq/bin/rabbitmq-server'],
        user='rabbitmq',
        environment={
            'HOME': home,
            'RABBITMQ_NODENAME': 'rabbit@localhost',
            'RABBITMQ_NODE_IP_ADDRESS': settings.ADDRESS,
            'RABBITMQ_NODE_PORT': str(settings.PORTS['rabbitmq']),
            'RABBITMQ_MNESIA_BASE': f'{home}/mnesia',
            'RABBITMQ_LOG_BASE': '/var/log/rabbitmq',
            'RABBITMQ_PID_FILE': '/run/rabbitmq/pid',
            'RABBITMQ_ENABLED_PLUGINS_FILE': f'{home}/enabled_plugins',
            'RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS': '+sbwt none +sbwtdcpu none '
            '-kernel inet_dist_use_interface {127,0,0,1}',
            'ERL_EPMD_ADDRESS': settings.ADDRESS,
        },
        ready=lambda: listens('rabbitmq'),
        stop_seconds=15,
    )


def libvirt() -> list[Service]:
    return [
        Service(
            'virtlogd',
            ['/usr/sbin/virtlogd'],
            ready=pathlib.Path('/run/libvirt/virtlogd-sock').exists,
        ),
        Service(
            'libvirtd',
            ['/usr/sbin/libvirtd'],
            needs=('virtlogd',),
            ready=pathlib.Path('/run/libvirt/libvirt-sock').exists,
        ),
    ]


def wsgi(name: str, service: str, user: str, path: str = '/') -> Service:
    """One HTTP API under gunicorn.

    Nova reads ``sys.argv`` itself, so gunicorn gets its arguments by the
    environment.
    """
    return Service(
        name,
        [str(settings.OPENSTACK / 'bin/gunicorn')],
        user=user,
        environment={
            'GUNICORN_CMD_ARGS': f'--config={settings.ETC}/{name}.py'
        },
        needs=('mariadb',),
        ready=lambda: api.answers(service, path),
        stop_seconds=6,
    )


def nova(part: str, config: str = 'nova.conf') -> Service:
    service = Service(
        part,
        [
            str(settings.OPENSTACK / 'bin' / part),
            '--config-file',
            f'/etc/nova/{config}',
        ],
        user='nova',
        # They authenticate while they start, and end if they cannot.
        needs=('mariadb', 'rabbitmq', 'keystone'),
        stop_seconds=8,
    )
    service.ready = lambda: reported_since_start(service)
    return service


def reported_since_start(service: Service) -> bool:
    """Whether the API has a report of this very process."""
    for entry in ADMIN.get('nova', '/os-services')['services']:
        if (
            entry['binary'] == service.name
            and entry['state'] == 'up'
            and since(entry['updated_at']) > service.started_at()
        ):
            return service.name != 'nova-compute' or has_inventory()
    return False


def since(timestamp: str | None) -> float:
    """Nova's time in seconds; never updated is new, so it is for ever."""
    if timestamp is None:
        return math.inf
    moment = datetime.datetime.fromisoformat(timestamp)
    return moment.replace(tzinfo=datetime.timezone.utc).timestamp()


def has_inventory() -> bool:
    """Whether Placement can place a server here."""
    providers = ADMIN.get('placement', '/resource_providers')
    for provider in providers['resource_providers']:
        path = f'/resource_providers/{provider["uuid"]}/inventories'
        if ADMIN.get('placement', path)['inventories']:
            return True
    return False


def ours() -> list[Service]:
    """The conductor, and the agent, which changes to its user by itself.

    There is no service manager here: the holder keeps the agent's session.
    """
    bin_ = settings.LAZYIMAGE / 'bin'
    controller = '/etc/lazyimage/lazyimage-conductor.conf'
    lazyimage = str(bin_ / 'lazyimage')

    def initialise() -> None:
        engine.prepare()
        database.run(
            'lazyimage', lazyimage, '--config-file', controller, 'init'
        )

    beside = engine.services()
    conductors = [
        Service(
            name,
            [str(bin_ / 'lazyimage-conductor'), '--config-file', controller],
            user='lazyimage',
            needs=('mariadb', 'rabbitmq'),
        )
        # A cloud has several before one database.
        for name in CONDUCTORS[: 2 if beside else 1]
    ]
    conductors[0].prepare = initialise
    conductors[0].needs = (
        *conductors[0].needs,
        *(each.name for each in beside),
    )
    for other in conductors[1:]:
        other.needs = (CONDUCTORS[0],)
    return [
        *beside,
        *conductors,
        Service(
            'lazyimage-agent',
            [
                *(str(bin_ / 'lazyimage-holder'), '--'),
                *(str(bin_ / 'lazyimage-agent'), '--config-file'),
                '/etc/lazyimage/lazyimage.conf',
            ],
            needs=('rabbitmq', CONDUCTORS[0]),
            ready=agent_ready,
            stop_seconds=30,
        ),
    ]


def agent_ready() -> bool:
    return bool(agent.get('/v1/status').get('ready'))


def neutron() -> Service:
    stub = pathlib.Path(__file__).parent / 'neutron_stub.py'
    return Service(
        'neutron',
        [
            '/usr/bin/python3',
            str(stub),
            settings.ADDRESS,
            str(settings.PORTS['neutron']),
        ],
        user='nobody',
        group='nogroup',
        ready=lambda: listens('neutron'),
        stop_seconds=2,
        stop_signal=signal.SIGKILL,
    )


def all_services(flavour: str) -> dict[str, Service]:
    """Every service of the cloud in the order of starting."""
    services = [
        mariadb(),
        rabbitmq(),
        *libvirt(),
        neutron(),
        wsgi('keystone', 'keystone', 'keystone', '/v3'),
        wsgi('placement', 'placement', 'placement'),
        *(ours() if flavour == 'lazy' else ()),
        nova('nova-conductor'),
        wsgi('nova-api', 'nova', 'nova'),
        nova('nova-compute', 'nova-compute.conf'),
        nova('nova-scheduler'),
        wsgi('glance', 'glance', 'glance', '/versions'),
    ]
    by_name = {service.name: service for service in services}
    compute = by_name['nova-compute']
    # A compute service that finds no conductor tries again after 10 s.
    compute.needs = ('libvirtd', 'nova-conductor', 'placement')
    if flavour == 'lazy':
        compute.needs = (*compute.needs, 'lazyimage-agent')
    return by_name
