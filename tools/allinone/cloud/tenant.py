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
"""An ordinary project's user, with short waits and times taken."""

from __future__ import annotations

import base64
import json
import os
import pathlib
import re
import subprocess
import time
from typing import Any

from cloud import api
from cloud import settings


class Failed(Exception):
    """A server or an image ended in an error, or in no time."""


class Tenant(api.Client):
    """What a user of the cloud does with images and servers."""

    def __init__(self, name: str = 'demo') -> None:
        super().__init__(name, name)
        self.flavors: dict[str, str] = {}

    # images

    def upload(
        self,
        path: str | pathlib.Path,
        name: str,
        store: str | None = None,
        **properties: Any,
    ) -> Any:
        """Create an image from a file; returns the active image."""
        image = self.create_image(name, **properties)
        self.upload_data(image['id'], path, store)
        return self.image(image['id'])

    def create_image(self, name: str, **properties: Any) -> Any:
        """A queued image, raw unless said otherwise."""
        body = {
            'name': name,
            'disk_format': 'raw',
            'container_format': 'bare',
            **properties,
        }
        return self.post('glance', '/v2/images', body)

    def upload_data(
        self, image_id: str, path: str | pathlib.Path, store: str | None = None
    ) -> None:
        path = pathlib.Path(path)
        headers = {
            'Content-Type': 'application/octet-stream',
            'Content-Length': str(path.stat().st_size),
        }
        if store:
            headers['X-Image-Meta-Store'] = store
        url = settings.url('glance', f'/v2/images/{image_id}/file')
        with path.open('rb') as stream:
            self.open('PUT', url, stream, headers, timeout=600).close()

    def download(self, image_id: str, path: str | pathlib.Path) -> None:
        """An image's bytes into a file; zero blocks become holes."""
        url = settings.url('glance', f'/v2/images/{image_id}/file')
        with (
            self.open('GET', url, timeout=600) as answer,
            pathlib.Path(path).open('wb') as stream,
        ):
            while block := answer.read(1 << 20):
                if block.count(0) == len(block):
                    stream.seek(len(block), 1)
                else:
                    stream.write(block)
            stream.truncate()

    def image(self, image_id: str) -> Any:
        return self.get('glance', f'/v2/images/{image_id}')

    def delete_image(self, image_id: str) -> None:
        self.delete('glance', f'/v2/images/{image_id}')

    def wait_image(self, image_id: str, seconds: float = 120) -> Any:
        """Wait until an image is active."""

        def active() -> Any:
            image = self.image(image_id)
            if image['status'] in ('killed', 'deleted'):
                raise Failed(f'image {image_id} is {image["status"]}')
            return image if image['status'] == 'active' else None

        return until(active, seconds, f'image {image_id} to become active')

    # servers

    def boot(
        self,
        name: str,
        image_id: str,
        flavor: str = 'tiny',
        user_data: str | None = None,
    ) -> str:
        """Ask for a server; returns its id at once."""
        if not self.flavors:
            self.flavors = {
                entry['name']: entry['id']
                for entry in self.get('nova', '/flavors')['flavors']
            }
        server: dict[str, Any] = {
            'name': name,
            'imageRef': image_id,
            'flavorRef': self.flavors[flavor],
            'networks': 'none',
        }
        if user_data is not None:
            server['config_drive'] = True
            server['user_data'] = base64.b64encode(user_data.encode()).decode()
        answer = self.post('nova', '/servers', {'server': server})
        return str(answer['server']['id'])

    def server(self, server_id: str) -> Any:
        return self.get('nova', f'/servers/{server_id}')['server']

    def wait_server(
        self, server_id: str, status: str = 'ACTIVE', seconds: float = 120
    ) -> Any:
        """Wait for a status with no task left; Failed at ERROR."""

        def reached() -> Any:
            server = self.server(server_id)
            if server['status'] == 'ERROR' and status != 'ERROR':
                fault = server.get('fault', {}).get('message')
                raise Failed(f'server {server_id} is in error: {fault}')
            if server['OS-EXT-STS:task_state'] is not None:
                return None
            return server if server['status'] == status else None

        return until(reached, seconds, f'server {server_id} to be {status}')

    def action(self, server_id: str, kind: str, **body: Any) -> Any:
        """One of the server actions, by its name in the API."""
        return self.post(
            'nova', f'/servers/{server_id}/action', {kind: body or None}
        )

    def console(self, server_id: str, lines: int | None = None) -> str:
        body = {'length': lines} if lines else {}
        url = settings.url('nova', f'/v2.1/servers/{server_id}/action')
        text = json.dumps({'os-getConsoleOutput': body}).encode()
        headers = {'Content-Type': 'application/json'}
        with self.open('POST', url, text, headers) as answer:
            return str(json.load(answer)['output'])

    def wait_console(
        self, server_id: str, pattern: str, seconds: float = 120
    ) -> re.Match[str]:
        """Wait until the console shows a pattern; Failed if the guest does."""

        def shown() -> re.Match[str] | None:
            try:
                text = self.console(server_id)
            except api.ApiError as exc:
                if exc.status in (404, 409):
                    return None
                raise
            failed = re.search(r'GUEST-FAILED.*', text)
            if failed:
                raise Failed(f'server {server_id}: {failed.group()}')
            return re.search(pattern, text)

        return until(shown, seconds, f'{pattern!r} on the console')

    def wait_up(
        self, server_id: str, boots: int = 1, seconds: float = 120
    ) -> list[str]:
        """Wait for the guest's given boot; the marks its disk carries."""
        match = self.wait_console(
            server_id, rf'GUEST-UP boots={boots} marks=([0-9a-f,]+)\s', seconds
        )
        return match.group(1).split(',')

    def snapshot(self, server_id: str, name: str) -> str:
        """Ask for an image of a server; returns the image's id at once."""
        answer = self.action(server_id, 'createImage', name=name)
        return str(answer['image_id'])

    def delete_server(self, server_id: str, seconds: float = 60) -> None:
        """Delete a server and wait until it is gone."""
        self.delete('nova', f'/servers/{server_id}')

        def gone() -> bool:
            try:
                server = self.server(server_id)
            except api.ApiError as exc:
                return exc.status == 404
            if server['status'] == 'ERROR':
                raise Failed(f'server {server_id}: deleting failed')
            return False

        until(gone, seconds, f'server {server_id} to be gone')


def openstack(*arguments: str) -> str:
    """Run the ordinary client as a user would; what it printed.

    :raises Failed: with what it printed, if it ended in an error
    """
    done = subprocess.run(
        [str(settings.OPENSTACK / 'bin/openstack'), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={
            **os.environ,
            'OS_CLIENT_CONFIG_FILE': str(settings.CLOUDS),
            'OS_CLOUD': 'allinone',
        },
    )
    if done.returncode:
        raise Failed(f'"openstack {arguments[0]}": {done.stdout.strip()}')
    return done.stdout


def until(question: Any, seconds: float, what: str) -> Any:
    """The first true answer; Failed after some seconds."""
    deadline = time.monotonic() + seconds
    while True:
        answer = question()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise Failed(f'waited {seconds:.0f} s for {what}')
        time.sleep(0.1)
