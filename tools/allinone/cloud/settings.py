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
"""Where things are and what they are called."""

from __future__ import annotations

import pathlib

#: Nova's host, the agent's identity and the root's host name.
HOST = 'allinone'
REGION = 'RegionOne'
#: Everything listens on the loopback of a network namespace of its own.
ADDRESS = '127.0.0.1'
PASSWORD = 'allinone'

PORTS = {
    'keystone': 5000,
    'glance': 9292,
    'placement': 8778,
    'nova': 8774,
    'neutron': 9696,
    'mariadb': 3306,
    'rabbitmq': 5672,
    'gateway': 7480,
}

AUTH_URL = f'http://{ADDRESS}:{PORTS["keystone"]}/v3'
RABBIT_URL = f'rabbit://guest:guest@{ADDRESS}:{PORTS["rabbitmq"]}/'

OPENSTACK = pathlib.Path('/opt/openstack')
LAZYIMAGE = pathlib.Path('/opt/lazyimage')
#: Configuration of the all-in-one itself, gunicorn's above all.
ETC = pathlib.Path('/etc/allinone')
RUN = pathlib.Path('/run/allinone')
LOG = pathlib.Path('/var/log/allinone')
#: Kept between instances: guests, prepared databases.
SHARED = pathlib.Path('/var/cache/lazyimage')
CLOUDS = pathlib.Path('/root/clouds.yaml')

FLAVOURS = ('stock', 'lazy')
ENGINES = ('file', 's3')


def database_url(name: str) -> str:
    """The URL of one service's database."""
    return (
        f'mysql+pymysql://{name.partition("_")[0]}:{PASSWORD}'
        f'@{ADDRESS}:{PORTS["mariadb"]}/{name}?charset=utf8'
    )


def url(service: str, path: str = '') -> str:
    """The URL of one of the HTTP services."""
    return f'http://{ADDRESS}:{PORTS[service]}{path}'
