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
"""What the end-to-end tests are made of."""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import re
import subprocess
import threading
import time

from cloud import agent
from cloud import settings
from cloud.api import ApiError
from cloud.tenant import until

CHUNK_BYTES = 512 * 1024
STATE = pathlib.Path('/var/lib/lazyimage')
MOUNT = STATE / 'mnt'
LIVE = pathlib.Path('/run/lazyimage/live')
INSTANCES = pathlib.Path('/var/lib/nova/instances')
BOOT_SECONDS = 240

#: User data for the flavor "disks": counts on the ephemeral disk. While the
#: server is rescued there is no swap, and vdb is its root disk.
COUNT_DISKS = """\
echo "CONFIG-DRIVE $(grep -o '"name": "[a-z]*"' \\
    /mnt/openstack/latest/meta_data.json)"
[ -b /dev/vdc ] || exit 0
old=$(dd if=/dev/vdb bs=512 skip=999999 count=1 2>/dev/null | tr -cd 0-9)
new=$((${old:-0} + 1))
echo $new | dd of=/dev/vdb bs=512 seek=999999 conv=notrunc 2>/dev/null
sync
echo "DISKS vdb=$(cat /sys/block/vdb/size) vdc=$(cat /sys/block/vdc/size)" \\
    "count=$new"
"""


# Logs

WATCHED = ('nova-compute', 'lazyimage-agent', 'lazyimage-conductor', 'glance')
#: What stock services say without anything being wrong.
HARMLESS = (
    # Two threads of a starting nova-compute report its inventory.
    'placement.concurrent_update',
    # The agent serves before the catalog answers, and says so.
    'The catalog does not answer yet',
)
LINE = re.compile(
    r'(?P<time>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+) (?P<pid>\d+) '
    r'(?P<level>[A-Z]+) (?P<logger>\S+)'
)
OURS = ('nova_lazyimage', 'nova.virt.lazyimage', 'lazyblob', 'glance_store_b')


class Logs:
    """New errors and tracebacks of the watched logs."""

    def __init__(self):
        self._offsets = {name: self._size(name) for name in WATCHED}
        self._expected = []
        self._before = []

    @staticmethod
    def _size(name):
        with contextlib.suppress(FileNotFoundError):
            return (settings.LOG / f'{name}.log').stat().st_size
        return 0

    def expect(self, patterns):
        """Of the test that begins; the last one's may still be written."""
        self._before, self._expected = self._expected, list(patterns)

    def problems(self):
        allowed = [*HARMLESS, *self._before, *self._expected]
        return [
            f'{name}: {text[:2000]}'
            for name in WATCHED
            for text in errors_of(self._read(name))
            if not any(re.search(pattern, text) for pattern in allowed)
        ]

    def _read(self, name):
        try:
            with (settings.LOG / f'{name}.log').open('rb') as stream:
                stream.seek(self._offsets[name])
                text = stream.read()
        except FileNotFoundError:
            return ''
        text = text[: text.rfind(b'\n') + 1]
        self._offsets[name] += len(text)
        return text.decode('utf-8', 'replace')


def errors_of(text):
    """Errors of a log, each as one text with its traceback."""
    found = []
    last = None
    for line in text.splitlines():
        match = LINE.match(line)
        if match is None:
            if line.startswith('Traceback (most recent call last)'):
                found.append(line)
                last = None
            elif found and (line.startswith(' ') or last == 'raw'):
                found[-1] += f'\n{line}'
            continue
        level, logger = match['level'], match['logger']
        ours = logger.startswith(OURS) and level == 'WARNING'
        if level not in ('ERROR', 'CRITICAL') and not ours:
            last = None
            continue
        record = (match['time'], match['pid'], logger)
        if record == last:
            found[-1] += f'\n{line}'
        else:
            found.append(line)
        last = record
    return found


# Guests


class Guest:
    """A server and what its guest has said so far.

    Each boot adds a random mark to its disk, so the marks prove which disk
    it is and that nothing of it was lost.
    """

    def __init__(self, tenant, server_id):
        self.tenant = tenant
        self.id = server_id
        self.marks = []

    def disk_digest(self):
        """Of its disk's bytes, whether it runs or not.

        The misses of a stopped server have been ended.
        """
        path = f'/v1/mirrors/{self.id}/disk/allow-misses'
        status, body = agent.request('POST', path, {})
        assert status < 300, body
        return digest(MOUNT / self.id / 'disk')

    def lines(self):
        """Every GUEST-UP on its console since the domain was started."""
        try:
            text = self.tenant.console(self.id)
        except ApiError as exc:
            if exc.status in (404, 409):
                return []
            raise
        failed = re.search('GUEST-FAILED.*', text)
        assert not failed, failed.group()
        return [
            (int(boots), marks.split(','))
            for boots, marks in re.findall(
                r'GUEST-UP boots=(\d+) marks=([0-9a-f,]+)\s', text
            )
        ]

    def next_boot(self, seconds=BOOT_SECONDS):
        """Wait for a boot that was not seen; returns its marks."""

        def booted():
            lines = self.lines()
            if lines and lines[-1][1] != self.marks:
                return lines[-1]
            return None

        boots, marks = until(booted, seconds, f'a boot of {self.id}')
        assert len(marks) == boots
        return marks

    def came_back(self):
        """It booted once more, from the disk it had."""
        self.tenant.wait_server(self.id, seconds=BOOT_SECONDS)
        marks = self.next_boot()
        assert marks[:-1] == self.marks, (marks, self.marks)
        self.marks = marks

    def ready(self):
        """It is active and up."""
        server = self.tenant.wait_server(self.id, seconds=BOOT_SECONDS)
        if not self.marks:
            self.marks = self.next_boot()
        return server

    def act(self, kind, status='ACTIVE', **body):
        """An action, and the status that it ends in."""
        self.tenant.action(self.id, kind, **body)
        time.sleep(0.3)
        self.tenant.wait_server(self.id, status, BOOT_SECONDS)

    def shutdowns(self):
        """How often its guest has powered itself off, as libvirt says."""
        import libvirt

        connection = libvirt.openReadOnly('qemu:///system')
        try:
            name = connection.lookupByUUIDString(self.id).name()
        finally:
            connection.close()
        log = pathlib.Path(f'/var/log/libvirt/qemu/{name}.log')
        text = log.read_text(errors='replace')
        return text.count('shutting down, reason=shutdown')


def need_flavor(admin, flavor):
    have = admin.get('nova', '/flavors')['flavors']
    if flavor['name'] not in [entry['name'] for entry in have]:
        admin.post('nova', '/flavors', {'flavor': flavor})


def outcome(admin, server_id, action):
    """Why an action of a server failed: the texts of its events.

    Their owner is told that it failed, administrators why.
    """

    def ended():
        path = f'/servers/{server_id}/os-instance-actions'
        for entry in admin.get('nova', path)['instanceActions']:
            if entry['action'] == action:
                break
        else:
            return None
        found = admin.get('nova', f'{path}/{entry["request_id"]}')
        found = found['instanceAction']
        if found['message'] != 'Error':
            return None
        return [
            event['details']
            for event in found['events']
            if event.get('details')
        ]

    return '\n'.join(until(ended, 60, f'{action} of {server_id} to fail'))


# Our parts


def mirrors():
    """Server and disk of each mirror of the agent."""
    return {
        (found['instance'], found['disk'])
        for found in agent.get('/v1/mirrors')['mirrors']
    }


def mirror(server_id, disk='disk'):
    return agent.get(f'/v1/mirrors/{server_id}/{disk}')


def last_commit(server_id):
    """What the agent says of the last COMMIT of a server."""
    text = (settings.LOG / 'lazyimage-agent.log').read_text()
    ids = re.findall(
        rf'Commit (\S+) of disk disk of server {server_id} is sealed', text
    )
    return agent.get(f'/v1/mirrors/{server_id}/disk/commits/{ids[-1]}')


def blobs():
    """What the catalog lists, by id."""
    listing = subprocess.run(
        [
            str(settings.LAZYIMAGE / 'bin/lazyimage'),
            '--config-file=/etc/lazyimage/lazyimage-conductor.conf',
            'ls',
            '--output=json',
        ],
        check=True,
        stdout=subprocess.PIPE,
    ).stdout
    return {blob['id']: blob for blob in json.loads(listing)}


def digest(path):
    """Digest of a file's bytes, holes read as zeros."""
    found = hashlib.sha256()
    with open(path, 'rb') as stream:
        while block := stream.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def data_chunks(path):
    """Chunks of a raw file that hold anything but zeros."""
    found = set()
    index = 0
    with open(path, 'rb') as stream:
        while block := stream.read(CHUNK_BYTES):
            if block.count(0) != len(block):
                found.add(index)
            index += 1
    return found


@dataclasses.dataclass
class Reads:
    """What a guest read of its first disk, as QEMU counts it.

    :ivar chunks: distinct chunks of the requests that QEMU's trace shows
    :ivar traced_bytes: sum of those requests
    :ivar counted_bytes: QEMU's own counter: the trace has all if equal
    """

    chunks: set
    traced_bytes: int
    counted_bytes: int


class ReadTrace:
    """QEMU traces the reads of a server from its very start.

    The trace is switched on as soon as libvirt shows the domain: before the
    firmware, which takes a second under emulation, reads its first sector.
    """

    EVENT = 'virtio_blk_handle_read'

    def __init__(self, server_id):
        import libvirt

        libvirt.registerErrorHandler(lambda *_: None, None)
        self._connection = libvirt.open('qemu:///system')
        self._server_id = server_id
        self._domain = None
        self._thread = threading.Thread(target=self._switch_on, daemon=True)
        self._thread.start()

    def _switch_on(self):
        import libvirt
        import libvirt_qemu

        deadline = time.monotonic() + BOOT_SECONDS
        while time.monotonic() < deadline:
            for domain in self._connection.listAllDomains(
                libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE
            ):
                if domain.UUIDString() != self._server_id:
                    continue
                with contextlib.suppress(libvirt.libvirtError):
                    libvirt_qemu.qemuMonitorCommand(
                        domain,
                        f'trace-event {self.EVENT} on',
                        libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP,
                    )
                    self._domain = domain
                    return
            time.sleep(0.01)

    def reads(self):
        self._thread.join()
        assert self._domain is not None, 'the domain was never seen'
        counted = self._domain.blockStats('vda')[1]
        log = pathlib.Path(
            f'/var/log/libvirt/qemu/{self._domain.name()}.log'
        ).read_text(errors='replace')
        chunks = set()
        traced = 0
        for sector, count in re.findall(
            rf'{self.EVENT} .*sector (\d+) nsectors (\d+)', log
        ):
            start, length = int(sector) * 512, int(count) * 512
            traced += length
            chunks.update(
                range(
                    start // CHUNK_BYTES,
                    -(-(start + length) // CHUNK_BYTES),
                )
            )
        return Reads(chunks, traced, counted)
