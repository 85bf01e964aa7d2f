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
"""A Ceph of one node with an object gateway, for the demo and for tests.

A monitor, a manager, an OSD whose disk is a sparse file, and radosgw, each an
ordinary process on loopback: no systemd, no cephadm, no container. One copy
of everything and no cephx: it is there to speak S3 as Ceph does, and is
nothing to keep data in.

The order is Ceph's own: the monitor's map and store, the monitor, the OSD's
number, its store, the OSD, the gateway's user, the gateway. A folder that has
been made once is only started again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import http.client
import json
import os
import pathlib
import subprocess
import time
import urllib.parse
import uuid

from cloud import settings
from cloud.process import Service
from cloud.process import ServiceError

OSD_BYTES = 8 * 1024**3
# A gateway that stops gives its requests two minutes; nobody waits for them.
STOP_SECONDS = 2.0

CONFIGURATION = """\
[global]
fsid = {fsid}
mon host = [v2:{address}:{monitor_port}]
public network = {address}/32
ms bind ipv6 = false
ms bind msgr1 = false
auth cluster required = none
auth service required = none
auth client required = none
# The gateway insists on encryption towards the monitor, which cephx gives.
ms mon client mode = crc
run dir = {folder}/run
admin socket = {folder}/run/$name.asok
pid file =
log file = {folder}/log/$name.log
crash dir = {folder}/run
mon cluster log to file = false
# A proposal waits for others to join it, a second by default; every pool and
# user is some proposals.
paxos propose interval = 0.05
paxos min wait = 0.01
mon data = {folder}/mon
mon data avail warn = 1
mon data avail crit = 0
mon allow pool size one = true
mon warn on pool no redundancy = false
auth allow insecure global id reclaim = false
mgr data = {folder}/mgr
mgr initial modules =
osd data = {folder}/osd
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd memory target = 939524096
bluestore block size = {osd_bytes}
rgw data = {folder}/rgw
rgw enable usage log = false
rgw dns name = {address}
"""


@dataclasses.dataclass(frozen=True)
class Ceph:
    """One cluster in one folder.

    :ivar port: of the gateway; the monitor's is the next one
    :ivar more: further lines of its configuration
    """

    folder: pathlib.Path
    port: int = settings.PORTS['gateway']
    address: str = settings.ADDRESS
    osd_bytes: int = OSD_BYTES
    more: str = ''

    @property
    def endpoint(self) -> str:
        """Where S3 is spoken."""
        return f'http://{self.address}:{self.port}'

    @property
    def _configuration(self) -> pathlib.Path:
        return self.folder / 'ceph.conf'

    def services(self) -> list[Service]:
        """The four processes, in the order of starting."""
        monitor = self._service(
            'ceph-mon',
            '--id=a',
            f'--public-addrv=[v2:{self.address}:{self.port + 1}]',
        )
        monitor.prepare = self._make_monitor
        monitor.ready = lambda: self._answers('mon.a', 'mon_status', 'leader')
        manager = self._service('ceph-mgr', '--id=x')
        manager.needs = ('ceph-mon',)
        osd = self._service('ceph-osd', '--id=0')
        osd.needs = ('ceph-mon',)
        osd.prepare = self._make_osd
        osd.ready = lambda: self._answers('osd.0', 'status', '"active"')
        gateway = self._service(
            'radosgw',
            '--name=client.admin',
            # Its own defaults stand above the file.
            '--auth-client-required=none',
            '--ms-mon-client-mode=crc',
            f'--rgw-frontends=beast endpoint={self.address}:{self.port}'
            ' tcp_nodelay=1',
        )
        gateway.needs = ('ceph-osd', 'ceph-mgr')
        gateway.ready = self._serves
        return [monitor, manager, osd, gateway]

    def start(self) -> None:
        """Start all four and wait for the gateway."""
        for service in self.services():
            service.start()
            if service.name != 'ceph-mgr':
                service.wait_ready()

    def stop(self) -> None:
        """Stop all four, the monitor last."""
        for service in reversed(self.services()):
            service.stop()

    def add_user(
        self, name: str, access_key: str, secret_key: str, *more: str
    ) -> None:
        """Make a user of the gateway, unless it is there.

        :param more: further arguments of ``radosgw-admin user create``
        """
        if name in json.loads(self.admin('user', 'list')):
            return
        self.admin(
            *('user', 'create', f'--uid={name}', f'--display-name={name}'),
            *(f'--access-key={access_key}', f'--secret-key={secret_key}'),
            *more,
        )

    def add_bucket(self, name: str, access_key: str, secret_key: str) -> None:
        """Make a bucket of a user's; repeating is harmless."""
        import obstore
        import obstore.store

        # It makes no buckets, but signs the request.
        store = obstore.store.S3Store(
            name,
            endpoint=self.endpoint,
            region='us-east-1',
            access_key_id=access_key,
            secret_access_key=secret_key,
            client_options={'allow_http': True},
        )
        signed = obstore.sign(store, 'PUT', '', datetime.timedelta(minutes=5))
        parts = urllib.parse.urlsplit(signed)
        status, text = self._ask('PUT', f'{parts.path}?{parts.query}')
        if status != 200:
            raise ServiceError(f'bucket {name}: status {status}: {text!r}')

    def admin(self, *arguments: str) -> str:
        """What ``radosgw-admin`` prints."""
        return self._run('radosgw-admin', *arguments)

    def _service(self, program: str, *arguments: str) -> Service:
        return Service(
            program,
            [
                f'/usr/bin/{program}',
                '--foreground',
                f'--conf={self._configuration}',
                *arguments,
            ],
            stop_seconds=STOP_SECONDS,
            ready_seconds=60.0,
        )

    def _run(self, *command: str, seconds_max: float = 60.0) -> str:
        program, *arguments = command
        done = subprocess.run(
            [program, f'--conf={self._configuration}', *arguments],
            capture_output=True,
            text=True,
            timeout=seconds_max,
        )
        if done.returncode:
            raise ServiceError(f'{" ".join(command)} failed: {done.stderr}')
        return done.stdout

    def _make_monitor(self) -> None:
        if self._configuration.exists():
            return
        for name in ('log', 'mgr', 'mon', 'osd', 'rgw', 'run'):
            (self.folder / name).mkdir(parents=True)
        fsid = str(uuid.uuid4())
        self._configuration.write_text(
            CONFIGURATION.format(
                fsid=fsid,
                folder=self.folder,
                address=self.address,
                monitor_port=self.port + 1,
                osd_bytes=self.osd_bytes,
            )
            + self.more,
            encoding='ascii',
        )
        monitor_map = str(self.folder / 'monmap')
        at = f'[v2:{self.address}:{self.port + 1}]'
        self._run(
            *('monmaptool', '--create', '--fsid', fsid),
            *('--addv', 'a', at, monitor_map),
        )
        self._run(
            *('ceph-mon', '--mkfs', '--id=a', f'--monmap={monitor_map}'),
            '--keyring=/dev/null',
        )

    def _make_osd(self) -> None:
        if (self.folder / 'osd' / 'ready').exists():
            return
        identity = str(uuid.uuid4())
        self._run('ceph', 'osd', 'new', identity, '0')
        self._run('ceph-osd', '--mkfs', '--id=0', f'--osd-uuid={identity}')

    def _answers(self, daemon: str, question: str, answer: str) -> bool:
        """Whether a daemon says of itself, by its socket, that it is so."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            socket = str(self.folder / 'run' / f'{daemon}.asok')
            return answer in self._run(
                *('ceph', '--admin-daemon', socket, question), seconds_max=5.0
            )
        return False

    def _serves(self) -> bool:
        return self._ask('GET', '/')[0] == 200

    def _ask(self, method: str, target: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(
            self.address, self.port, timeout=30
        )
        with contextlib.closing(connection):
            connection.request(method, target)
            answer = connection.getresponse()
            return answer.status, answer.read()


def main() -> None:
    """``python -m cloud.ceph FOLDER``: start one, and say how long it took."""
    import sys

    begin = time.monotonic()
    ceph = Ceph(pathlib.Path(sys.argv[1]))
    ceph.start()
    print(f'{ceph.endpoint} after {time.monotonic() - begin:.1f} s')
    ceph.add_user('demo', 'demo', os.environ.get('SECRET', 'demosecret'))
    print(f'with a user after {time.monotonic() - begin:.1f} s')


if __name__ == '__main__':
    main()
