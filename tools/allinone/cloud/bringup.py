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
"""Bringing the cloud up and down."""

from __future__ import annotations

import concurrent.futures
import os
import pathlib
import threading
import time

from cloud import configuration
from cloud import database
from cloud import engine
from cloud import identity
from cloud import services
from cloud import settings
from cloud.api import Client
from cloud.process import Service
from cloud.process import ServiceError

FLAVOUR = settings.RUN / 'flavour'


class Cloud:
    """The services of one instance, as a whole and one by one."""

    def __init__(
        self, flavour: str | None = None, chunks: str | None = None
    ) -> None:
        engine.choose(chunks)
        self.flavour = flavour or recorded_flavour()
        self.services = services.all_services(self.flavour)

    def __getitem__(self, name: str) -> Service:
        return self.services[name]

    def up(self) -> None:
        """Start everything; services that run already are left alone."""
        folders()
        configuration.write_all(self.flavour)
        FLAVOUR.write_text(self.flavour, encoding='ascii')
        if not database.present() and not database.restore():
            report('preparing the databases, once for all instances')
            database.configure_for_preparation()
            database.prepare(self['mariadb'], self['keystone'])
            configuration.write_all(self.flavour)
        self._start_all()
        client = Client()
        identity.add_flavors(client)

    def _start_all(self) -> None:
        begin = time.monotonic()
        ready = {name: threading.Event() for name in self.services}
        failed = threading.Event()

        def bring_up(service: Service) -> None:
            for name in service.needs:
                while not ready[name].wait(0.1):
                    if failed.is_set():
                        return
            try:
                service.start()
                service.wait_ready()
            except BaseException:
                failed.set()
                raise
            ready[service.name].set()
            report(f'{service.name} ({time.monotonic() - begin:.1f} s)')

        with concurrent.futures.ThreadPoolExecutor(len(self.services)) as pool:
            jobs = [
                pool.submit(bring_up, service)
                for service in self.services.values()
            ]
            for job in concurrent.futures.as_completed(jobs):
                job.result()

    def down(self) -> None:
        """Stop everything, what others need last."""
        last = ('lazyimage-agent', *services.CONDUCTORS)
        beside = [service.name for service in engine.services()]
        below = (*last, 'libvirtd', 'virtlogd', 'mariadb', 'rabbitmq', *beside)
        groups = [
            [name for name in self.services if name not in below],
            ['libvirtd'],
            [name for name in last if name in self.services],
            ['virtlogd', 'mariadb', 'rabbitmq'],
            # One after the other: an OSD without its monitor does not end.
            *([name] for name in reversed(beside) if name in self.services),
        ]
        for group in groups:
            if group == ['libvirtd']:
                end_guests()
            with concurrent.futures.ThreadPoolExecutor(16) as pool:
                list(pool.map(lambda name: self[name].stop(), group))

    def compute_flavour(self, flavour: str) -> None:
        """Restart nova-compute with the other driver."""
        self['nova-compute'].stop()
        configuration.nova_compute(flavour)
        self['nova-compute'].start()
        self['nova-compute'].wait_ready()

    def restart(self, name: str) -> None:
        self[name].stop()
        self[name].start()
        self[name].wait_ready()


def recorded_flavour() -> str:
    try:
        return FLAVOUR.read_text(encoding='ascii')
    except FileNotFoundError:
        return 'stock'


def end_guests() -> None:
    """Power off what still runs: the next start finds it stopped."""
    import libvirt

    try:
        connection = libvirt.open('qemu:///system')
    except libvirt.libvirtError:
        return
    for domain in connection.listAllDomains(
        libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE
    ):
        try:
            domain.destroy()
        except libvirt.libvirtError as exc:
            report(f'could not power off {domain.name()}: {exc}')
    connection.close()


def folders() -> None:
    """What packages and unit files make on an ordinary host."""
    for path, user, mode in (
        ('/var/lib/mysql', 'mysql', 0o700),
        ('/run/mysqld', 'mysql', 0o755),
        ('/var/lib/rabbitmq', 'rabbitmq', 0o750),
        ('/var/log/rabbitmq', 'rabbitmq', 0o750),
        ('/run/rabbitmq', 'rabbitmq', 0o755),
        ('/var/lib/keystone', 'keystone', 0o755),
        ('/var/lib/placement', 'placement', 0o755),
        ('/var/lib/glance', 'glance', 0o755),
        ('/var/lib/glance/images', 'glance', 0o750),
        ('/var/lib/glance/st', 'glance', 0o750),
        ('/var/lib/glance/tasks', 'glance', 0o750),
        ('/var/lib/glance/locks', 'glance', 0o750),
        ('/var/lib/nova', 'nova', 0o755),
        ('/var/lib/nova/instances', 'nova', 0o755),
        ('/var/lib/nova/locks', 'nova', 0o755),
        ('/var/lib/lazyimage', 'lazyimage', 0o755),
        ('/run/lazyimage', 'lazyimage', 0o755),
    ):
        database.own(pathlib.Path(path), user, mode)
    # Glance's door and the agent write the same files: setgid and umask 002.
    for name in ('repository', 'repository/chunks'):
        path = pathlib.Path('/var/lib/lazyimage') / name
        database.own(path, 'lazyimage', 0o2770)
    released = pathlib.Path('/var/lib/lazyimage/released')
    database.own(released, 'lazyimage', 0o2770)
    os.chown(released, -1, _group('nova'))
    settings.RUN.mkdir(exist_ok=True)
    settings.LOG.mkdir(exist_ok=True)


def _group(name: str) -> int:
    import grp

    return grp.getgrnam(name).gr_gid


def report(text: str) -> None:
    print(f'  {text}', flush=True)


__all__ = ['Cloud', 'ServiceError']
