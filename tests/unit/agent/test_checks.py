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
"""Each thing that can be wrong is one line, and names the remedy."""

import pytest

from nova_lazyimage.agent import checks
from nova_lazyimage.cmd import status

NOVA = """
[DEFAULT]
compute_driver = lazyimage.LazyLibvirtDriver
use_cow_images = False
transport_url = rabbit://nova:a%b@host/
[libvirt]
images_type = raw
[service_user]
send_service_user_token = true
auth_type = password
"""
GLANCE = """
[DEFAULT]
enabled_backends = blob1:blob, local:file
do_secure_hash = False
[keystone_authtoken]
service_token_roles = service
service_token_roles_required = True
"""


@pytest.fixture
def look(tmp_path):
    def look(nova=None, glance=None, ours='[agent]\n'):
        arguments = ['check', '--config-file', str(tmp_path / 'ours')]
        (tmp_path / 'ours').write_text(ours)
        for name, text in (('nova', nova), ('glance', glance)):
            if text is not None:
                (tmp_path / name).write_text(text)
                arguments += [f'--{name}-conf', str(tmp_path / name)]
        found = status.look(status.parser().parse_args(arguments))
        return [
            finding
            for finding in found
            if finding.name.endswith('.conf') and not finding.good
        ]

    return look


def test_a_right_configuration_has_no_finding(look):
    assert look(NOVA, GLANCE) == []


@pytest.mark.parametrize(
    ('old', 'new', 'named'),
    [
        ('lazyimage.Lazy', 'libvirt.', '[DEFAULT] compute_driver'),
        ('images_type = raw', '', '[libvirt] images_type'),
        ('use_cow_images = False', '', '[DEFAULT] use_cow_images'),
        (
            'use_cow_images',
            'force_raw_images = 0\nuse_cow_images',
            '[DEFAULT] force_raw_images',
        ),
        (
            '[libvirt]',
            '[libvirt]\nsnapshot_image_format = qcow2',
            '[libvirt] snapshot_image_format',
        ),
        ('true', 'false', '[service_user] send_service_user_token'),
        ('auth_type = password', '', '[service_user] auth_type'),
        (
            '[libvirt]',
            '[lazyimage]\nmount_root = /elsewhere\n[libvirt]',
            '[lazyimage] mount_root',
        ),
        (
            '[libvirt]',
            '[lazyimage]\nagent_socket = /elsewhere\n[libvirt]',
            '[lazyimage] agent_socket',
        ),
    ],
)
def test_each_fault_of_nova_conf_is_named(look, old, new, named):
    assert old in NOVA
    (finding,) = look(NOVA.replace(old, new))
    assert finding.level is checks.Level.FAILURE
    assert finding.message.startswith(named)
    assert 'set it to' in finding.message


@pytest.mark.parametrize(
    ('old', 'new', 'named'),
    [
        ('blob1:blob', 'blob1:file', '[DEFAULT] enabled_backends'),
        ('do_secure_hash = False', '', '[DEFAULT] do_secure_hash'),
        (
            '[keystone',
            'show_multiple_locations = True\n[keystone',
            '[DEFAULT] show_multiple_locations',
        ),
        (
            '[keystone',
            'show_image_direct_url = True\n[keystone',
            '[DEFAULT] show_image_direct_url',
        ),
        (
            'roles = service',
            'roles = admin',
            '[keystone_authtoken] service_token_roles',
        ),
        (
            '_required = True',
            '_required = False',
            '[keystone_authtoken] service_token_roles_required',
        ),
    ],
)
def test_each_fault_of_glance_conf_is_named(look, old, new, named):
    assert old in GLANCE
    (finding,) = look(NOVA, GLANCE.replace(old, new))
    assert finding.message.startswith(named)


def test_the_stores_that_nova_names_must_be_glances(look):
    nova = f'{NOVA}[lazyimage]\nglance_stores = blob1, blob2\n'
    (finding,) = look(nova, GLANCE)
    assert 'blob2:blob' in finding.message


KEY = 'A' * 43 + '='
RPC = '[repository]\ncatalog = rpc://\n'


@pytest.mark.parametrize(
    ('ours', 'named'),
    [
        (RPC, '[conductor] public_keys'),
        ('[repository]\n', '[conductor] public_keys'),
        ('[conductor]\ncatalog = mysql://db\n', '[conductor] signing_key'),
    ],
)
def test_answers_that_nobody_signs_or_checks_are_a_warning(look, ours, named):
    (finding,) = look(ours=ours)
    assert finding.level is checks.Level.WARNING
    assert finding.message.startswith(named)


def test_glance_is_to_check_them_as_well(look):
    store = '[blob1]\nblob_store_catalog = rpc://\n'
    (finding,) = look(glance=GLANCE + store)
    assert finding.level is checks.Level.WARNING
    assert '[blob1] blob_store_conductor_public_keys' in finding.message
    store += f'blob_store_conductor_public_keys = {KEY}\n'
    assert look(glance=GLANCE + store) == []


def test_a_public_key_that_is_none_is_a_failure(look):
    ours = f'{RPC}[conductor]\npublic_keys = {KEY}, wrong\n'
    (finding,) = look(ours=ours)
    assert finding.level is checks.Level.FAILURE
    assert '"wrong"' in finding.message


def test_keys_on_both_sides_are_as_it_should_be(look):
    assert look(ours=f'{RPC}[conductor]\npublic_keys = {KEY}\n') == []
    ours = '[conductor]\ncatalog = mysql://db\nsigning_key = /key\n'
    assert look(ours=ours) == []


def test_the_worst_finding_is_the_exit_status(tmp_path, capsys):
    (tmp_path / 'nova').write_text('')
    arguments = ['check', '--nova-conf', str(tmp_path / 'nova')]
    assert status.main(arguments) == 2
    lines = capsys.readouterr().out.splitlines()
    assert any(
        line.startswith('FAILURE nova.conf: [DEFAULT] compute_driver')
        for line in lines
    )
    assert all(len(line.split(': ', 1)) == 2 for line in lines)


def test_a_file_that_cannot_be_read_is_named(tmp_path, capsys):
    path = tmp_path / 'missing'
    assert status.main(['check', '--nova-conf', str(path)]) == 2
    assert str(path) in capsys.readouterr().err


def test_a_request_time_out_of_fuse_is_a_failure(tmp_path, monkeypatch):
    path = tmp_path / 'timeout'
    path.write_text('30\n')
    monkeypatch.setattr(checks, 'REQUEST_TIMEOUT', path)
    found = checks.of_host(tmp_path / 'mnt', tmp_path, '/run/agent.sock')
    (finding,) = [f for f in found if f.level is checks.Level.FAILURE]
    assert 'fs.fuse.default_request_timeout is "30"' in finding.message
