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
"""The agent's HTTP interface, version 1, on its unix socket.

``reference/agent-api`` is the text for people. A request is checked whole
before anything is done; an error carries its name and the remedy; a call may
be repeated.

Threads: one a connection. A slow catalog holds up the callers that need it
and nobody else.
"""

import contextlib
import http.server
import json
import os
import re
import socket
import socketserver
import threading
import urllib.parse
from collections.abc import Callable
from typing import Any

from oslo_log import log as logging

from nova_lazyimage.agent import arguments
from nova_lazyimage.agent import client
from nova_lazyimage.agent import errors
from nova_lazyimage.agent import host
from nova_lazyimage.agent import peers

LOG = logging.getLogger(__name__)

BODY_BYTES_MAX = 64 * 1024
IDLE_SECONDS_MAX = 120.0


class Request:
    """What a route sees of a request.

    :ivar ids: the parts of the path that name something
    """

    def __init__(
        self,
        peer: peers.Peer,
        ids: tuple[str, ...],
        query: dict[str, str],
        body: dict[str, Any],
    ) -> None:
        self.peer = peer
        self.ids = ids
        self.query = query
        self.body = body

    def flag(self, name: str) -> bool:
        """A query's ``name=1``."""
        value = self.query.get(name, '0')
        if value not in ('0', '1'):
            raise errors.BadRequest(f'"{name}" must be 0 or 1')
        return value == '1'


# (status, body): bytes as they are, anything else as JSON.
Answer = tuple[int, Any]
Route = Callable[[Request], Answer]


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Listens on the socket.

    :param routes: (verb, pattern of the path, what answers)
    :param gid: group that may ask, beside root and the agent's user
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        path: str,
        routes: list[tuple[str, str, Route]],
        gid: int | None,
    ) -> None:
        self.routes = [
            (verb, re.compile(pattern), route)
            for verb, pattern, route in routes
        ]
        self.gid = gid
        self._path = path
        self._thread: threading.Thread | None = None
        super().__init__(path, _Handler)

    def server_bind(self) -> None:
        """Replace what a dead agent left; the state's lock is ours."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        with client.address_of(self._path) as address:
            before = os.umask(0o177)
            try:
                self.socket.bind(address)
            finally:
                os.umask(before)
        if self.gid is not None:
            host.give(self._path, self.gid)
            os.chmod(self._path, 0o660)
        self.server_address = self._path

    def start(self) -> None:
        """Answer, in threads of its own."""
        self._thread = threading.Thread(
            target=self.serve_forever, args=(0.2,), name='api', daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Answer no more; the socket is gone."""
        if self._thread is not None:
            self.shutdown()
            self._thread.join()
        self.server_close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no event."""
        LOG.debug('A connection ended early')


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    server_version = 'lazyimage-agent'
    sys_version = ''
    timeout = IDLE_SECONDS_MAX
    server: Server

    def setup(self) -> None:
        self.connection: socket.socket = self.request
        self.peer = peers.Peer.of(self.connection)
        super().setup()

    def address_string(self) -> str:
        return f'pid {self.peer.pid}'

    def log_message(self, format: str, *args: Any) -> None:
        LOG.debug('%s %s', self.address_string(), format % args)

    def do_GET(self) -> None:
        self._serve()

    do_PUT = do_POST = do_DELETE = do_GET

    def _serve(self) -> None:
        try:
            status, answer = self._answer()
        except Exception as exc:
            status, code, message = errors.describe(exc)
            if status == 500:
                LOG.exception('%s %s failed', self.command, self.path)
            else:
                LOG.info(
                    '%s %s: %s: %s', self.command, self.path, code, message
                )
            answer = {'error': {'code': code, 'message': message}}
        content_type = 'application/json'
        if isinstance(answer, bytes):
            data = answer
            content_type = (
                'text/plain; version=0.0.4; charset=utf-8'
                if self.path == '/metrics'
                else 'application/octet-stream'
            )
        else:
            data = b'' if answer is None else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header('Content-Type', content_type)
        self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _answer(self) -> Answer:
        body = self._body()
        if not self.peer.may_ask(self.server.gid):
            raise errors.PeerForbidden(
                f'user {self.peer.uid} may not use this agent; run as '
                'nova-compute\'s user or root'
            )
        path, _, query = self.path.partition('?')
        route, ids = self._route(path)
        return route(
            Request(
                self.peer,
                ids,
                dict(urllib.parse.parse_qsl(query, keep_blank_values=True)),
                body,
            )
        )

    def _route(self, path: str) -> tuple[Route, tuple[str, ...]]:
        known = False
        for verb, pattern, route in self.server.routes:
            found = pattern.fullmatch(path)
            if found is None:
                continue
            known = True
            if verb == self.command:
                return route, tuple(
                    urllib.parse.unquote(part) for part in found.groups()
                )
        if known:
            raise errors.BadRequest(f'"{path[:80]}" knows no {self.command}')
        raise errors.BadRequest(
            f'unknown path "{path[:80]}"; this is version 1 of the interface'
        )

    def _body(self) -> dict[str, Any]:
        length = self.headers.get('Content-Length', '0')
        if (
            self.headers.get('Transfer-Encoding')
            or not (length.isascii() and length.isdigit())
            or int(length) > BODY_BYTES_MAX
        ):
            self.close_connection = True
            raise errors.BadRequest(
                f'a body needs a Content-Length of at most {BODY_BYTES_MAX}'
            )
        data = self.rfile.read(int(length))
        if not data:
            return {}
        try:
            body = json.loads(data)
        except ValueError as exc:
            raise errors.BadRequest(f'the body is not JSON: {exc}') from exc
        if not isinstance(body, dict):
            raise errors.BadRequest('the body must be an object')
        return body


def mirror_key(request: Request) -> tuple[str, str]:
    """The mirror that the path names."""
    return arguments.key(request.ids[0], request.ids[1])
