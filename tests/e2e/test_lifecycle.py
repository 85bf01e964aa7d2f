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
"""What a server goes through between its first boot and its end."""

import re

import parts
import pytest
from cloud import agent
from cloud.tenant import until

RECLAIM = '\n[DEFAULT]\nreclaim_instance_interval = 86400\n'


@pytest.fixture(scope='module')
def server(lively):
    lively.ready()
    lively.count = 0
    counted(lively)
    return lively


def came_back(server):
    """It booted once more, and every disk is as it was."""
    server.came_back()
    counted(server)


def counted(server):
    """Wait for the user data of a boot, which is the guest's last step."""
    match = server.tenant.wait_console(server.id, r'DISKS .* count=(\d+)\s')
    assert int(match.group(1)) == server.count + 1
    server.count += 1


def test_config_drive_ephemeral_and_swap_disks_are_there(server):
    found = server.tenant.console(server.id)
    assert 'CONFIG-DRIVE "name": "lively"' in found
    assert re.search(rf'vdb={1 << 21} vdc={64 << 11} count=1\s', found)
    assert parts.mirrors() >= {(server.id, 'disk')}
    assert not parts.mirrors() & {(server.id, 'disk.eph0')}


def test_stop_and_start_keep_what_was_written(server):
    before = server.shutdowns()
    server.act('os-stop', 'SHUTOFF')
    assert server.shutdowns() == before + 1
    server.tenant.action(server.id, 'os-start')
    came_back(server)


def test_pause_and_unpause_are_not_noticed_by_the_guest(server):
    server.act('pause', 'PAUSED')
    server.act('unpause')
    assert server.lines()[-1][1] == server.marks


def test_suspend_and_resume_are_not_noticed_by_the_guest(server):
    server.act('suspend', 'SUSPENDED')
    server.act('resume')
    # The console's file begins anew with the domain, and nobody booted.
    assert not server.lines()


def test_a_soft_reboot_keeps_what_was_written(server):
    """It also proves that the guest runs on after the resume."""
    before = server.shutdowns()
    server.tenant.action(server.id, 'reboot', type='SOFT')
    came_back(server)
    assert server.shutdowns() == before + 1


def test_a_hard_reboot_keeps_what_was_written(server):
    server.tenant.action(server.id, 'reboot', type='HARD')
    came_back(server)


def test_a_rescue_boots_from_a_disk_of_its_own(server):
    server.act('rescue', 'RESCUE')
    assert parts.mirrors() >= {
        (server.id, 'disk'),
        (server.id, 'disk.rescue'),
    }
    rescued = server.next_boot()
    assert len(rescued) == 1
    assert rescued[0] not in server.marks
    server.rescued = rescued


def test_after_the_rescue_the_server_has_its_disk(server):
    mirror = parts.mirror(server.id)
    marks, server.marks = server.marks, server.rescued
    server.tenant.action(server.id, 'unrescue')
    server.tenant.wait_server(server.id)
    booted = server.next_boot()
    assert booted[:-1] == marks
    server.marks = booted
    counted(server)
    assert (server.id, 'disk.rescue') not in parts.mirrors()
    assert parts.mirror(server.id)['attach_id'] == mirror['attach_id']


def test_a_rebuild_begins_with_the_image_again(server, base):
    mirror = parts.mirror(server.id)
    server.act('rebuild', imageRef=base['id'])
    marks = server.next_boot()
    assert len(marks) == 1
    assert marks[0] not in server.marks
    server.marks, server.count = marks, 0
    counted(server)
    assert parts.mirror(server.id)['attach_id'] != mirror['attach_id']
    until(
        lambda: mirror['blob_id'] not in parts.blobs(),
        30,
        'the blob of the disk before the rebuild to go',
    )


@pytest.fixture
def deferred_deletion(cloud):
    """The API keeps deleted servers for a day."""
    with open('/etc/nova/nova.conf', 'r+') as stream:
        text = stream.read()
        stream.write(RECLAIM)
    cloud.restart('nova-api')
    yield
    with open('/etc/nova/nova.conf', 'w') as stream:
        stream.write(text)
    cloud.restart('nova-api')


def test_a_server_deleted_softly_comes_back_as_it_was(
    server, deferred_deletion
):
    mirror = parts.mirror(server.id)
    server.tenant.delete('nova', f'/servers/{server.id}')
    server.tenant.wait_server(server.id, 'SOFT_DELETED')
    assert parts.mirror(server.id)['attach_id'] == mirror['attach_id']
    server.tenant.action(server.id, 'restore')
    came_back(server)


def test_the_agent_tells_of_no_broken_disk(server):
    status = agent.get('/v1/status')
    assert status['broken'] == 0
    assert status['checks'] == []
