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
"""The APIs, with nothing but the standard library.

For the bring-up and the tests, which want short waits and exact answers; the
demo uses the ordinary client.
"""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from typing import Any

from cloud import settings


class ApiError(OSError):
    """An answer other than success."""

    def __init__(self, status: int, url: str, body: str) -> None:
        super().__init__(f'{status} from {url}: {body[:500]}')
        self.status = status
        self.body = body


class Client:
    """One user's session; the token is renewed before it ends."""

    def __init__(
        self,
        user: str = 'admin',
        project: str = 'admin',
        password: str = settings.PASSWORD,
    ) -> None:
        self.user = user
        self.project = project
        self.password = password
        self._token = ''
        self._token_until = 0.0
        self.project_id = ''
        self._lock = threading.Lock()

    def token(self) -> str:
        """A valid token, cached for ten minutes."""
        with self._lock:
            if time.monotonic() >= self._token_until:
                self._authenticate()
            return self._token

    def _authenticate(self) -> None:
        body = {
            'auth': {
                'identity': {
                    'methods': ['password'],
                    'password': {
                        'user': {
                            'name': self.user,
                            'domain': {'id': 'default'},
                            'password': self.password,
                        }
                    },
                },
                'scope': {
                    'project': {
                        'name': self.project,
                        'domain': {'id': 'default'},
                    }
                },
            }
        }
        request = urllib.request.Request(
            f'{settings.AUTH_URL}/auth/tokens',
            json.dumps(body).encode(),
            {'Content-Type': 'application/json'},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            self._token = answer.headers['X-Subject-Token']
            self.project_id = json.load(answer)['token']['project']['id']
        self._token_until = time.monotonic() + 600

    def open(
        self,
        method: str,
        url: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 120,
    ) -> Any:
        """Send a request and return the open answer."""
        sent = {'X-Auth-Token': self.token(), **(headers or {})}
        data: bytes | Iterable[bytes] | None
        if body is None or isinstance(body, bytes) or hasattr(body, 'read'):
            data = body
        else:
            data = json.dumps(body).encode()
            sent.setdefault('Content-Type', 'application/json')
        request = urllib.request.Request(url, data, sent, method=method)
        try:
            return urllib.request.urlopen(request, timeout=timeout)
        except urllib.error.HTTPError as exc:
            text = exc.read().decode('utf-8', 'replace')
            raise ApiError(exc.code, url, text) from None

    def call(
        self, method: str, service: str, path: str, body: Any = None
    ) -> Any:
        """A JSON request; None where the answer has no body."""
        headers = {}
        if service == 'nova':
            path = f'/v2.1{path}'
            headers['X-OpenStack-Nova-API-Version'] = '2.90'
        elif service == 'placement':
            headers['OpenStack-API-Version'] = 'placement 1.36'
        elif service == 'keystone':
            path = f'/v3{path}'
        with self.open(
            method, settings.url(service, path), body, headers
        ) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def get(self, service: str, path: str) -> Any:
        return self.call('GET', service, path)

    def post(self, service: str, path: str, body: Any) -> Any:
        return self.call('POST', service, path, body)

    def delete(self, service: str, path: str) -> None:
        self.call('DELETE', service, path)


def answers(service: str, path: str = '/') -> bool:
    """Whether an HTTP service answers at all."""
    try:
        urllib.request.urlopen(settings.url(service, path), timeout=5).close()
    except urllib.error.HTTPError as exc:
        return exc.code < 500
    except OSError:
        return False
    return True
