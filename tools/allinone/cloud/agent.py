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
"""The agent's HTTP interface over its socket, as a client sees it."""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any

SOCKET = '/run/lazyimage/agent.sock'


class Connection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(SOCKET)


def request(method: str, path: str, body: Any = None) -> tuple[int, bytes]:
    """Status and body of one answer."""
    connection = Connection('localhost')
    try:
        data = None if body is None else json.dumps(body)
        connection.request(
            method, path, data, {'Content-Type': 'application/json'}
        )
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def get(path: str) -> Any:
    """The JSON of one path; OSError where it is not 200."""
    status, body = request('GET', path)
    if status != 200:
        raise OSError(f'{status} from the agent for {path}: {body[:300]!r}')
    return json.loads(body)
