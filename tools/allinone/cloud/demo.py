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
"""The show of ``make demo``: the main path with the ordinary client.

Every command that a user would type is printed before it runs. Times are
taken by asking the APIs, since the client's own start takes seconds.
"""

from __future__ import annotations

import argparse
import pathlib
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from cloud import guest
from cloud import numbers
from cloud import settings
from cloud.api import ApiError
from cloud.tenant import Failed
from cloud.tenant import Tenant
from cloud.tenant import openstack

MIB = 1 << 20
WRITE = """\
#!/bin/sh
head -c 15000000 /dev/urandom >/var/demo-payload && sync
echo "DEMO-WROTE $(md5sum </var/demo-payload | cut -c1-32)" >/dev/console
"""
READ = """\
#!/bin/sh
echo "DEMO-READ $(md5sum </var/demo-payload | cut -c1-32)" >/dev/console
"""
UP = r'GUEST-UP boots=\d+ marks=[0-9a-f,]+(?=\s)|.*login:'


class Demo:
    """One run of the show."""

    def __init__(self, image: pathlib.Path | None, lazy: bool) -> None:
        self.tenant = Tenant('demo')
        self.given = image
        self.lazy = lazy
        self.begin = time.monotonic()
        self.table: list[tuple[str, str]] = []
        self.flavor = 'small'
        self.known = 1

    def say(self, text: str) -> None:
        print(f'[{time.monotonic() - self.begin:6.1f} s] {text}', flush=True)

    def note(self, name: str, value: str) -> None:
        self.table.append((name, value))
        self.say(f'-> {name}: {value}')

    def client(self, *arguments: str) -> str:
        """Run one command of the client, shown first."""
        print(f'\n$ openstack {shlex.join(arguments)}', flush=True)
        return openstack(*arguments)

    def watched(
        self, appeared: Callable[[], Any], *arguments: str
    ) -> tuple[Any, float]:
        """Run a command; what it made and when it appeared in the API."""
        found: list[Any] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                self.client(*arguments)
            except Failed as exc:
                errors.append(exc)

        thread = threading.Thread(target=run, name='client')
        thread.start()
        while not found and not errors:
            entry = appeared()
            if entry:
                found = [entry, time.monotonic()]
            time.sleep(0.05)
        thread.join()
        if errors:
            raise errors[0]
        return found[0], found[1]

    def named_server(self, name: str) -> Any:
        path = f'/servers?name=^{name}$'
        return (self.tenant.get('nova', path)['servers'] or [None])[0]

    def named_image(self, name: str) -> Any:
        path = f'/v2/images?name={name}'
        return (self.tenant.get('glance', path)['images'] or [None])[0]

    # the steps

    def run(self) -> None:
        self.clear()
        image = self.upload()
        first, up = self.boot('first', 'demo-image', WRITE)
        self.console('first', first, up)
        match = self.tenant.wait_console(first, r'DEMO-WROTE (\w{32})', 300)
        written = match.group(1)
        self.say(f'the guest wrote 15 MB with checksum {written}')
        self.mirror('', first, image)
        snapshot = self.snapshot(first)
        second, up = self.boot('second', 'first-snapshot', READ)
        self.console('second', second, up)
        match = self.tenant.wait_console(second, r'DEMO-READ (\w{32})', 300)
        if match.group(1) != written:
            raise Failed(
                'the second server does not carry the first one\'s '
                f'writes: {match.group(1)} instead of {written}'
            )
        self.say(
            f'the second server read the same bytes: checksum {match.group(1)}'
        )
        self.mirror(' from snapshot', second, snapshot)
        if self.lazy:
            for name, value in numbers.repository():
                self.note(name, value)
        self.client('server', 'delete', '--wait', 'first', 'second')
        self.client('image', 'delete', 'first-snapshot')
        self.say('both servers and the snapshot are deleted')

    def clear(self) -> None:
        """Remove what an earlier run left."""
        for server in self.tenant.get('nova', '/servers')['servers']:
            if server['name'] in ('first', 'second'):
                self.tenant.delete_server(server['id'])
        for name in ('demo-image', 'first-snapshot'):
            while image := self.named_image(name):
                self.tenant.delete_image(image['id'])

    def upload(self) -> Any:
        path = self.raw_image()
        size = path.stat()
        self.say(
            f'image of {size.st_size / MIB:.0f} MiB virtual size holding '
            f'{size.st_blocks * 512 / MIB:.0f} MiB'
        )
        gib = -(-size.st_size // (1 << 30))
        self.flavor = 'big' if gib <= 4 else f'disk{gib}'
        self.make_flavor(gib)
        begin = time.monotonic()
        self.client(
            *('image', 'create', '--disk-format', 'raw'),
            *('--container-format', 'bare', '--file', str(path)),
            'demo-image',
        )
        image = self.named_image('demo-image')
        if image['status'] != 'active':
            raise Failed(f'the image is {image["status"]}')
        self.note('upload of the image', f'{time.monotonic() - begin:.1f} s')
        return image

    def raw_image(self) -> pathlib.Path:
        if self.given is None:
            self.say('making a guest image')
            return guest.image('big')
        information = subprocess.run(
            ['qemu-img', 'info', str(self.given)],
            check=True,
            text=True,
            stdout=subprocess.PIPE,
        ).stdout
        if 'file format: raw' in information:
            return self.given
        self.say('converting the given image to raw')
        raw = self.given.with_suffix('.raw')
        subprocess.run(
            ['qemu-img', 'convert', '-O', 'raw', str(self.given), str(raw)],
            check=True,
        )
        return raw

    def make_flavor(self, gib: int) -> None:
        admin = Tenant('admin')
        names = [
            flavor['name']
            for flavor in admin.get('nova', '/flavors')['flavors']
        ]
        if self.flavor not in names:
            flavor = {
                'name': self.flavor,
                'ram': 1024,
                'vcpus': 1,
                'disk': gib,
            }
            admin.post('nova', '/flavors', {'flavor': flavor})

    def boot(self, name: str, image: str, script: str) -> tuple[str, str]:
        """Boot a server; its id and the line that says it is up."""
        data = pathlib.Path(f'/tmp/{name}-user-data')
        data.write_text(script, encoding='ascii')
        server, begin = self.watched(
            lambda: self.named_server(name),
            *('server', 'create', '--image', image, '--flavor', self.flavor),
            *('--nic', 'none', '--config-drive', 'True'),
            *('--user-data', str(data), name),
        )
        server_id = str(server['id'])
        self.tenant.wait_server(server_id, seconds=600)
        active = time.monotonic()
        match = self.tenant.wait_console(server_id, UP, 600)
        self.note(f'{name} server ACTIVE', f'{active - begin:.1f} s')
        self.note(
            f'{name} server, guest up', f'{time.monotonic() - begin:.1f} s'
        )
        return server_id, match.group()

    def console(self, name: str, server: str, line: str) -> None:
        text = self.client('console', 'log', 'show', '--lines', '6', name)
        print('\n'.join(f'  | {shown}' for shown in text.splitlines()))
        if line not in text:
            self.say(f'earlier on the console: {line}')
        if line.startswith('GUEST-UP'):
            marks = re.findall(r'marks=(\S+)', line)[0].split(',')
            if len(marks) != self.known:
                raise Failed(f'{self.known} marks expected, {len(marks)} seen')
            self.known += 1

    def mirror(self, label: str, server: str, image: Any) -> None:
        if self.lazy:
            for name, value in numbers.mirror(server, image['size']):
                self.note(name + label, value)

    def snapshot(self, server: str) -> Any:
        before = numbers.committed_bytes() if self.lazy else 0
        image, begin = self.watched(
            lambda: self.named_image('first-snapshot'),
            *('server', 'image', 'create', '--name', 'first-snapshot'),
            'first',
        )
        active = self.tenant.wait_image(image['id'], 600)
        self.note(
            'snapshot of the running server',
            f'{time.monotonic() - begin:.1f} s',
        )
        self.tenant.wait_server(server)
        if self.lazy:
            size = numbers.committed_bytes() - before
            self.note('committed by the snapshot', f'{size / MIB:.1f} MiB')
        return active

    def print_table(self) -> None:
        width = max(len(name) for name, _ in self.table)
        print('\n' + '-' * (width + 22))
        for name, value in self.table:
            print(f'{name:<{width}}  {value}')
        print('-' * (width + 22), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--image', type=pathlib.Path)
    parser.add_argument('--flavour', choices=settings.FLAVOURS, default='lazy')
    options = parser.parse_args()
    demo = Demo(options.image, options.flavour == 'lazy')
    try:
        demo.run()
    except (ApiError, Failed, OSError) as exc:
        print(f'\nThe demo failed: {exc}', file=sys.stderr)
        print(f'The logs are in {settings.LOG}.', file=sys.stderr)
        return 1
    demo.print_table()
    return 0


if __name__ == '__main__':
    sys.exit(main())
