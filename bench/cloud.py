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
"""The main path beside stock Nova and Glance, on one all-in-one.

Each round and each side makes an image of its own content, so that nothing of
it is on the host or in a store yet: upload, download, boot, write 15 MB,
snapshot the running server. Stock is Nova's libvirt driver and Glance's file
store. Runs inside the all-in-one's root only.
"""

import dataclasses
import importlib
import pathlib
import shutil
import sys
import tempfile
import time
from typing import Any

from bench import harness

CLOUD = pathlib.Path(__file__).parents[1] / 'tools' / 'allinone'
CACHE = pathlib.Path('/var/lib/lazyimage/cache')
BOOT_SECONDS_MAX = 600.0
FLAVOR = 'big'
WRITE = """\
#!/bin/sh
head -c 15000000 /dev/urandom >/var/bench-payload && sync
echo BENCH-WROTE >/dev/console
"""


def load(name: str) -> Any:
    """A module of the all-in-one, which only its root can import."""
    if not pathlib.Path('/usr/share/lazyimage-guest').exists():
        raise harness.Missing(
            'cloud: runs inside the all-in-one only: make bench ONLY=cloud'
        )
    if str(CLOUD) not in sys.path:
        sys.path.insert(0, str(CLOUD))
    return importlib.import_module(f'cloud.{name}')


def cpu_seconds() -> float:
    """What all processes of this root have used, those that ended too."""
    ticks = 0
    for path in pathlib.Path('/proc').glob('[0-9]*/stat'):
        try:
            fields = path.read_text().rpartition(')')[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        ticks += sum(map(int, fields[11:15]))
    return ticks / 100


class Site:
    """The one cloud that both sides use, in turns."""

    def __init__(self, work: pathlib.Path) -> None:
        self.work = work
        self.users = 0
        self.serial = 0
        self.cloud: Any = None
        self.flavour = ''

    def enter(self) -> None:
        self.users += 1
        if self.cloud is None:
            self.cloud = load('bringup').Cloud('lazy')
            self.cloud.up()
            self.flavour = 'lazy'

    def leave(self) -> None:
        self.users -= 1
        if self.users == 0 and self.cloud is not None:
            self.cloud.down()

    def select(self, flavour: str) -> None:
        """Let Glance and nova-compute be stock, or ours."""
        if flavour == self.flavour:
            return
        load('configuration').glance(flavour)
        self.cloud.restart('glance')
        self.cloud.compute_flavour(flavour)
        self.flavour = flavour

    def forget(self) -> None:
        """Empty the chunk cache; no server is there."""
        self.cloud['lazyimage-agent'].stop()
        shutil.rmtree(CACHE, ignore_errors=True)
        self.cloud['lazyimage-agent'].start()
        self.cloud['lazyimage-agent'].wait_ready()

    def warm_up(self) -> None:
        """Take each service through its first request."""
        image = self.image('small')
        tenant = load('tenant').Tenant()
        try:
            uploaded = tenant.upload(image, 'warm-up')
        finally:
            shutil.rmtree(image.parent, ignore_errors=True)
        server = tenant.boot('warm-up', uploaded['id'])
        tenant.wait_server(server, seconds=BOOT_SECONDS_MAX)
        tenant.delete_server(server)
        tenant.delete_image(uploaded['id'])

    def image(self, name: str) -> pathlib.Path:
        """A new guest image whose data no other has."""
        guest = load('guest')
        self.serial += 1
        fresh = dataclasses.replace(
            guest.GUESTS[name], name=f'{name}-{self.serial}'
        )
        folder = pathlib.Path(tempfile.mkdtemp(dir=self.work))
        return pathlib.Path(guest.make(fresh, folder))


class Side:
    """Stock, or ours."""

    def __init__(self, site: Site, name: str, flavour: str) -> None:
        self.site = site
        self.name = name
        self.flavour = flavour

    def prepare(self) -> None:
        self.site.enter()

    def cleanup(self) -> None:
        self.site.leave()

    def run(self) -> harness.Measurements:
        self.site.select(self.flavour)
        if self.flavour == 'lazy':
            self.site.forget()
        self.site.warm_up()
        image = self.site.image('big')
        try:
            return self.measure(image)
        finally:
            shutil.rmtree(image.parent, ignore_errors=True)

    def measure(self, path: pathlib.Path) -> harness.Measurements:
        tenant = load('tenant').Tenant()
        used = cpu_seconds()
        begin = time.monotonic()
        image = tenant.upload(path, 'bench')
        uploaded = time.monotonic()
        tenant.download(image['id'], path.with_name('downloaded'))
        downloaded = time.monotonic()
        server = tenant.boot('bench', image['id'], FLAVOR, WRITE)
        tenant.wait_server(server, seconds=BOOT_SECONDS_MAX)
        active = time.monotonic()
        tenant.wait_up(server, seconds=BOOT_SECONDS_MAX)
        up = time.monotonic()
        tenant.wait_console(server, 'BENCH-WROTE', BOOT_SECONDS_MAX)
        written = time.monotonic()
        snapshot = tenant.snapshot(server, 'bench-snapshot')
        tenant.wait_image(snapshot, BOOT_SECONDS_MAX)
        saved = time.monotonic()
        tenant.wait_server(server, seconds=BOOT_SECONDS_MAX)
        used = cpu_seconds() - used
        tenant.delete_server(server)
        tenant.delete_image(snapshot)
        tenant.delete_image(image['id'])
        return {
            'upload': uploaded - begin,
            'download': downloaded - uploaded,
            'ACTIVE': active - downloaded,
            'guest up': up - downloaded,
            'snapshot': saved - written,
            harness.CPU: used,
        }


def contenders(work: pathlib.Path) -> list[harness.Contender]:
    site = Site(work)
    return [Side(site, 'stock', 'stock'), Side(site, 'lazyimage', 'lazy')]


BENCH = harness.Bench(
    name='cloud',
    summary='an image of 2 GB holding 600 MB, not yet on the host; a snapshot '
    'of the running server, 15 MB dirty',
    metrics=[
        harness.Metric(name, 's')
        for name in ('upload', 'download', 'ACTIVE', 'guest up', 'snapshot')
    ],
    baseline='stock',
    contenders=contenders,
    goals=[
        harness.Goal('upload', 'lazyimage', 1.0),
        harness.Goal('download', 'lazyimage', 1.0),
        harness.Goal('ACTIVE', 'lazyimage', 4.0),
        harness.Goal('guest up', 'lazyimage', 1.6),
        harness.Goal('snapshot', 'lazyimage', 5.0),
    ],
    rounds=3,
)
