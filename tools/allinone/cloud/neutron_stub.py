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
"""What Nova asks of Neutron in a cloud without networks: empty lists."""

from __future__ import annotations

import http.server
import json
import sys


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers each listing with nothing and each quota with no limit."""

    protocol_version = 'HTTP/1.1'

    def do_GET(self) -> None:
        parts = self.path.partition('?')[0].strip('/').split('/')
        if parts == ['']:
            body: object = {'versions': [{'id': 'v2.0', 'status': 'CURRENT'}]}
        elif len(parts) >= 2 and parts[1] == 'quotas':
            body = {'quota': {'port': -1, 'floatingip': -1, 'network': -1}}
        elif len(parts) == 2:
            body = {parts[1].removesuffix('.json').replace('-', '_'): []}
        else:
            self.answer(404, {'NeutronError': {'message': 'not here'}})
            return
        self.answer(200, body)

    def answer(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header('Content-Type', 'application/json')
        self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


if __name__ == '__main__':
    address = (sys.argv[1], int(sys.argv[2]))
    http.server.ThreadingHTTPServer(address, Handler).serve_forever()
