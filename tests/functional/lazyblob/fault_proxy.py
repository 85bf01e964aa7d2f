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
"""An HTTP proxy on loopback that makes trouble.

It passes requests to a server and answers back, the Host header included, so
that signatures stay right; a plan says which requests meet which fault. Each
connection is a thread of its own.

========= ===================================================================
a number  this status, and the server is not asked
cut       the connection ends before the server is asked
slow      and only after :data:`SLOW_SECONDS`
half      the server gets half of the request's body, and an end
mangled   the server gets another body
lost      the server has done it, and the connection ends
truncated half of the answer's body, then the connection ends
short     half of the answer's body, and a length that says so
wrong     an answer's body that is another in its second half
========= ===================================================================
"""

import contextlib
import http.client
import http.server
import socket
import threading
import time

SLOW_SECONDS = 1.5
_HOP = ('connection', 'keep-alive', 'transfer-encoding', 'te', 'upgrade')


class FaultProxy(http.server.ThreadingHTTPServer):
    """Use it in a ``with``.

    :param server: host and port of who answers
    :ivar plan: called with the number of a request, from 1 on; the fault
        that it meets, or ''
    :ivar faults: how many were met
    """

    daemon_threads = True

    def __init__(self, server):
        super().__init__(('127.0.0.1', 0), _Handler)
        self.server = server
        self._lock = threading.Lock()
        self._thread = threading.Thread(
            target=self.serve_forever, kwargs={'poll_interval': 0.02}
        )
        self.follow(lambda number: '')

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *unused):
        self.shutdown()
        self._thread.join()
        self.server_close()

    @property
    def endpoint(self):
        return f'http://127.0.0.1:{self.server_port}'

    def follow(self, plan):
        with self._lock:
            self.plan = plan
            self.count = self.faults = 0

    def next_fault(self):
        with self._lock:
            self.count += 1
            fault = self.plan(self.count)
            self.faults += bool(fault)
            return fault

    def handle_error(self, request, client_address):
        """A client that went away is no news here."""


def _wrong(body):
    half = len(body) // 2
    return body[:half] + bytes(byte ^ 0x55 for byte in body[half:])


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    wbufsize = -1
    disable_nagle_algorithm = True

    def setup(self):
        super().setup()
        self._upstream = http.client.HTTPConnection(
            *self.server.server, timeout=30
        )

    def finish(self):
        self._upstream.close()
        with contextlib.suppress(OSError):
            super().finish()

    def handle_any(self):
        length = int(self.headers.get('Content-Length') or 0)
        data = self.rfile.read(length)
        fault = self.server.next_fault()
        if fault.isdigit():
            self._answer(int(fault), [], b'')
            return
        if fault == 'slow':
            time.sleep(SLOW_SECONDS)
        if fault in ('cut', 'slow'):
            self.close_connection = True
            return
        if fault == 'half':
            self._ask_half(data)
            self.close_connection = True
            return
        status, headers, body = self._ask(
            _wrong(data) if fault == 'mangled' else data
        )
        if fault == 'lost':
            self.close_connection = True
            return
        if status < 300 and fault == 'wrong':
            body = _wrong(body)
        if status < 300 and fault == 'short':
            body = body[: len(body) // 2]
        self._answer(status, headers, body, half=fault == 'truncated')

    do_GET = do_PUT = do_DELETE = do_POST = do_HEAD = handle_any

    def _ask(self, data):
        self._begin(data)
        answer = self._upstream.getresponse()
        return answer.status, answer.getheaders(), answer.read()

    def _ask_half(self, data):
        """Ends when the server has noticed: it may answer, or hang up."""
        self._begin(data[: len(data) // 2])
        if data:
            self._upstream.sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError, http.client.HTTPException):
            self._upstream.getresponse().read()
        self._upstream.close()

    def _begin(self, data):
        self._upstream.putrequest(
            self.command,
            self.path,
            skip_host=True,
            skip_accept_encoding=True,
        )
        for name, value in self.headers.items():
            if name.lower() not in _HOP:
                self._upstream.putheader(name, value)
        self._upstream.endheaders(data)

    def _answer(self, status, headers, body, half=False):
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in (*_HOP, 'content-length'):
                self.send_header(name, value)
        # An answer to HEAD or without a body keeps its length of nothing.
        self.send_header('Content-Length', str(len(body) + (half and 10)))
        self.end_headers()
        if half:
            self.close_connection = True
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass
