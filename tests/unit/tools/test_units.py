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
"""The agent's unit keeps what the contracts ask of a service manager."""

import configparser
import pathlib

import pytest
from oslo_config import cfg

from nova_lazyimage.conf import agent as agent_conf

UNIT = pathlib.Path(__file__).parents[3] / (
    'etc/lazyimage/lazyimage-agent.service'
)
# Each gives a service a mount namespace of its own.
NAMESPACED = (
    'Private',
    'Protect',
    'ReadOnly',
    'ReadWrite',
    'Inaccessible',
    'Bind',
    'Temporary',
    'RootDirectory',
    'RootImage',
    'MountFlags',
    'DynamicUser',
)


class Repeated(dict):
    """An option that stands there twice has both values."""

    def __setitem__(self, key, value):
        if isinstance(value, list) and isinstance(self.get(key), list):
            value = self[key] + value
        super().__setitem__(key, value)


@pytest.fixture(scope='module')
def unit():
    parser = configparser.RawConfigParser(
        dict_type=Repeated, strict=False, delimiters=('=',)
    )
    parser.optionxform = str
    parser.read_string(UNIT.read_text())
    return parser


def test_the_agent_starts_before_whoever_uses_its_disks(unit):
    before = unit['Unit']['Before'].split()
    for name in (
        'libvirtd.service',
        'libvirtd.socket',
        'virtqemud.service',
        'virtqemud.socket',
        'libvirt-guests.service',
        'nova-compute.service',
        'openstack-nova-compute.service',
    ):
        assert name in before


def test_nothing_drops_what_is_kept_for_the_agent(unit):
    assert unit['Unit']['StartLimitIntervalSec'] == '0'
    service = unit['Service']
    assert int(service['FileDescriptorStoreMax']) >= 2
    assert service['FileDescriptorStorePreserve'] == 'yes'
    assert service['RuntimeDirectoryPreserve'] == 'yes'
    assert service['KillMode'] == 'process'
    assert service['Restart'] == 'always'


def test_qemu_sees_the_mount(unit):
    for name in unit['Service']:
        assert not name.startswith(NAMESPACED), name


def test_its_folders_are_the_defaults_of_the_options(unit):
    conf = cfg.ConfigOpts()
    agent_conf.register_opts(conf)
    conf([], default_config_files=[])
    service = unit['Service']
    assert conf.agent.run_directory == f'/run/{service["RuntimeDirectory"]}'
    state = f'/var/lib/{service["StateDirectory"]}'
    assert conf.agent.state_directory == state
    assert conf.agent.mount_root in service['ExecStopPost']
