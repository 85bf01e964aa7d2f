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
"""Snapshots of a server that must be quiesced, by QEMU's own guest agent.

That a disk was frozen stands in it: a frozen ext4 has an empty journal and
says so in its superblock, a mounted one never does.
"""

import json
import os
import pathlib
import re
import struct
import subprocess

import parts
import pytest
from cloud import settings
from cloud.api import ApiError
from cloud.tenant import until

PARTITION = 1 << 20
NEEDS_RECOVERY = 0x4
JOURNAL = parts.STATE / 'journal'

#: It writes, and says so, for as long as it lives.
WRITE = """\
(n=0; while n=$((n + 1)); do
    echo $n >/var/count && sync && echo "WROTE $n"
    sleep 0.2
done) &
"""


class Server(parts.Guest):
    """A guest that writes all the time, and its agent."""

    def count(self):
        """The last number that its guest has written and synced."""
        found = re.findall(r'WROTE (\d+)\s', self.tenant.console(self.id))
        return int(found[-1]) if found else 0

    def goes_on(self):
        """It writes on."""
        count = self.count()
        until(lambda: self.count() > count, 30, 'the guest to write on')

    def froze(self):
        """What its agent did to its file systems, in order."""
        text = self.tenant.console(self.id)
        return re.findall(r'GUEST-FILES (\w+)\s', text)

    def agent(self, command, **arguments):
        """A command to the agent in the guest."""
        import libvirt
        import libvirt_qemu

        connection = libvirt.open('qemu:///system')
        try:
            answer = libvirt_qemu.qemuAgentCommand(
                connection.lookupByUUIDString(self.id),
                json.dumps({'execute': command, 'arguments': arguments}),
                10,
                0,
            )
        finally:
            connection.close()
        return json.loads(answer)['return']

    def end_agent(self):
        """The agent in the guest ends, as when its package is removed."""
        import libvirt

        # It answers before it goes.
        arguments = ['-c', 'sleep 1; killall qemu-ga']
        self.agent('guest-exec', path='/bin/sh', arg=arguments)

        def is_gone():
            try:
                self.agent('guest-ping')
            except libvirt.libvirtError:
                return True

        until(is_gone, 20, 'the agent in the guest to end')

    def fails_to_snapshot(self):
        """A snapshot fails and leaves nothing; what nova-compute says.

        Nova tells a user that an image failed by deleting it.
        """
        log = settings.LOG / 'nova-compute.log'
        said = log.stat().st_size
        blobs = parts.blobs()
        image = self.tenant.snapshot(self.id, 'never')
        until(lambda: is_gone(self.tenant, image), 60, 'the image to go')
        self.tenant.wait_server(self.id)
        assert parts.blobs().keys() == blobs.keys()
        with log.open('rb') as stream:
            stream.seek(said)
            return stream.read().decode()


def is_gone(tenant, image):
    try:
        return tenant.image(image)['status'] == 'deleted'
    except ApiError as exc:
        return exc.status == 404


def needs_recovery(path):
    """Whether the ext4 on a disk was not frozen, nor unmounted."""
    with open(path, 'rb') as stream:
        stream.seek(PARTITION + 1024)
        superblock = stream.read(1024)
    magic, incompatible = struct.unpack_from('<56xH38xI', superblock)
    assert magic == 0xEF53
    return bool(incompatible & NEEDS_RECOVERY)


@pytest.fixture(scope='module')
def server(demo, guest_image):
    image = demo.upload(
        guest_image,
        'quiet',
        hw_qemu_guest_agent='yes',
        os_require_quiesce='yes',
    )
    server = Server(demo, demo.boot('quiet', image['id'], user_data=WRITE))
    server.ready()
    until(server.count, 60, 'the guest to write')
    assert 'GUEST-AGENT' in demo.console(server.id)
    yield server
    demo.delete_server(server.id)
    demo.delete_image(image['id'])


@pytest.fixture(scope='module')
def snapshot(demo, server):
    """A snapshot's bytes, and what the guest had written before."""
    assert needs_recovery(parts.MOUNT / server.id / 'disk')
    server.count_before = server.count()
    image = demo.snapshot(server.id, 'quiet-snapshot')
    demo.wait_image(image)
    demo.wait_server(server.id)
    path = pathlib.Path('/var/tmp/quiet.raw')
    demo.download(image, path)
    demo.delete_image(image)
    yield path
    path.unlink()


def test_the_guests_agent_froze_and_thawed_its_file_systems_once(
    server, snapshot
):
    assert server.froze() == ['freeze', 'thaw']
    assert server.agent('guest-fsfreeze-status') == 'thawed'


def test_the_snapshot_is_consistent_without_its_journal(server, snapshot):
    assert not needs_recovery(snapshot)
    # The disk itself is in use as before.
    assert needs_recovery(parts.MOUNT / server.id / 'disk')
    checked = subprocess.run(
        ['e2fsck', '-fn', f'{snapshot}?offset={PARTITION}'],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout
    found = subprocess.run(
        ['debugfs', '-R', 'cat /var/count', f'{snapshot}?offset={PARTITION}'],
        check=True,
        stdout=subprocess.PIPE,
    ).stdout
    assert int(found) >= server.count_before > 0


def test_the_guest_writes_on(server, snapshot):
    server.goes_on()


@pytest.fixture
def no_journal():
    """The agent cannot write down that it begins a COMMIT."""
    status = JOURNAL.stat()
    os.chown(JOURNAL, 0, 0)
    JOURNAL.chmod(0o555)
    yield
    os.chown(JOURNAL, status.st_uid, status.st_gid)
    JOURNAL.chmod(status.st_mode & 0o7777)


@pytest.mark.expect_errors('ermission', 'Snapshot', 'Cannot drop blob')
def test_a_commit_that_fails_thaws_the_guest(server, snapshot, no_journal):
    assert 'Permission denied' in server.fails_to_snapshot()
    assert server.froze() == ['freeze', 'thaw', 'freeze', 'thaw']
    server.goes_on()


@pytest.mark.expect_errors('quiesce', 'may still be frozen', 'guest agent')
def test_without_a_guest_agent_there_is_no_snapshot_and_nothing_is_left(
    server, snapshot
):
    server.end_agent()
    before = parts.mirror(server.id)
    assert 'QEMU guest agent is not connected' in server.fails_to_snapshot()
    assert len(server.froze()) == 4
    after = parts.mirror(server.id)
    assert after['dirty_bytes'] >= before['dirty_bytes'] > 0
    assert after['parent'] == before['parent']
    server.goes_on()
