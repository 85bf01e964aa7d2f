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
"""An agent without an engine: the real HTTP interface on a unix socket.

What the agent does to bytes is its own tests' matter; here it is a table of
disks, a log of the calls, and faults on demand::

    double.fail('POST', 'commits', 503, 'CatalogUnavailable')
    double.away()           # nobody listens any more
    double.back()           # it was restarted: what was sealed has failed
"""

import contextlib
import http.server
import json
import os
import pathlib
import re
import socketserver
import threading
import urllib.parse

MIB = 1024**2
REPOSITORY = '6e9b8f86-0f2c-4d0f-9c55-9b8f0f0f4a11'


class Refused(Exception):
    def __init__(self, status, code, message=''):
        super().__init__(message or code)
        self.status = status
        self.code = code


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    double = None

    def get_request(self):
        request, _ = super().get_request()
        return request, ('agent', 0)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def log_message(self, *args):
        pass

    def _answer(self):
        length = int(self.headers.get('Content-Length') or 0)
        body = json.loads(self.rfile.read(length) or b'{}')
        double = self.server.double
        try:
            status, answer = double.call(self.command, self.path, body)
        except Refused as exc:
            status, answer = (
                exc.status,
                {'error': {'code': exc.code, 'message': str(exc)}},
            )
        except ConnectionAbortedError:
            self.close_connection = True
            return
        data = answer
        if not isinstance(answer, bytes):
            data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_DELETE = _answer


class AgentDouble:
    """The agent of one host.

    :ivar blobs: image blobs by id: their content
    :ivar disks: what is attached, by (server, disk)
    :ivar calls: 'VERB path' of every call, in order
    :ivar images: blobs that snapshots published
    """

    def __init__(self, folder, host='compute1'):
        self.folder = pathlib.Path(folder)
        self.socket = str(self.folder / 'agent.sock')
        self.mount_root = str(self.folder / 'mnt')
        self.released = self.folder / 'released'
        self.released.mkdir(exist_ok=True)
        self.host = host
        self.ready = True
        self.api_version = 1
        self.blobs = {}
        self.disks = {}
        self.commits = {}
        self.images = {}
        self.calls = []
        self.publish = 'at once'  # never, failed
        self.on_call = None
        self._faults = []
        self._server = None
        self._thread = None
        self._mutex = threading.RLock()

    # For tests

    def add_blob(self, blob_id, content=b'\0', size_bytes=None):
        self.blobs[blob_id] = (content, size_bytes or 8 * MIB)

    def fail(self, verb, pattern, status, code='', message='', count=1):
        """The next ``count`` matching calls end so; status 0: no answer."""
        self._faults.append([verb, pattern, status, code, message, count])

    def calls_of(self, pattern):
        return [call for call in self.calls if re.search(pattern, call)]

    def back(self):
        """Listen; a COMMIT that was under way has failed."""
        for commit in self.commits.values():
            if commit['state'] == 'sealed':
                commit['state'] = 'failed'
                commit['error'] = {
                    'code': 'Interrupted',
                    'message': 'the agent was restarted during the commit',
                }
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.socket)
        self._server = _Server(self.socket, _Handler)
        self._server.double = self
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )
        self._thread.start()
        return self

    start = back

    def away(self):
        """Nobody listens."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
            os.unlink(self.socket)

    stop = away

    # The interface

    def call(self, verb, path, body):
        url = urllib.parse.urlsplit(path)
        with self._mutex:
            self.calls.append(f'{verb} {url.path}')
            if self.on_call is not None:
                self.on_call(verb, url.path, body)
            self._fault(verb, url.path)
            parts = url.path.strip('/').split('/')[1:]
            query = dict(urllib.parse.parse_qsl(url.query))
            if parts == ['status']:
                return 200, self._status()
            if parts[0] == 'images':
                return 200, self._drop_image(parts[1])
            if parts == ['mirrors']:
                return 200, {'mirrors': list(self.disks.values())}
            if len(parts) == 2:
                for key in [k for k in self.disks if k[0] == parts[1]]:
                    del self.disks[key]
                return 200, {}
            return self._mirror(
                verb, tuple(parts[1:3]), parts[3:], body, query
            )

    def _fault(self, verb, path):
        for fault in self._faults:
            if fault[0] == verb and re.search(fault[1], path) and fault[5]:
                fault[5] -= 1
                if not fault[2]:
                    raise ConnectionAbortedError
                raise Refused(fault[2], fault[3], fault[4])

    def _status(self):
        return {
            'version': '1.0',
            'api_version': self.api_version,
            'host': self.host,
            'ready': self.ready,
            'mount_root': self.mount_root,
            'repository': REPOSITORY,
        }

    def _drop_image(self, blob_id):
        if blob_id not in self.images:
            return {}
        del self.images[blob_id]
        return {}

    def _mirror(self, verb, key, rest, body, query):
        if verb == 'PUT':
            return 200, self._attach(key, body)
        if verb == 'DELETE':
            self.disks.pop(key, None)
            return 200, {}
        mirror = self.disks.get(key)
        if mirror is None:
            raise Refused(404, 'NotFound', f'no disk {key}')
        if not rest:
            return 200, mirror
        action = rest[0]
        if action == 'head':
            content = self.blobs[mirror['clone']][0]
            length = min(int(query['bytes']), mirror['size_bytes'])
            return 200, content[:length].ljust(length, b'\0')
        if action == 'grow':
            mirror['size_bytes'] = body['size_bytes']
        elif action == 'end-misses':
            mirror['misses'] = False
        elif action == 'allow-misses':
            mirror['misses'] = True
        elif action == 'commits' and verb == 'POST':
            return self._commit(mirror, body)
        elif action == 'commits':
            return 200, self._commit_state(rest[1])
        return 200, {}

    def _attach(self, key, body):
        if key in self.disks:
            return self.disks[key]
        blob = body['clone']['blob']
        if blob not in self.blobs:
            raise Refused(404, 'NotFound', f'no blob {blob}')
        size = self.blobs[blob][1]
        self.disks[key] = {
            'instance': key[0],
            'disk': key[1],
            'path': f'{self.mount_root}/{key[0]}/{key[1]}',
            'state': 'attached',
            'error': None,
            'size_bytes': size,
            'base_size_bytes': size,
            'local_bytes': 0,
            'dirty_bytes': 0,
            'clone': blob,
            'project_id': body['project_id'],
            'misses': True,
        }
        return self.disks[key]

    def _commit(self, mirror, body):
        commit_id = body['commit_id']
        known = self.commits.get(commit_id)
        if known is None:
            known = {
                'commit_id': commit_id,
                'state': 'sealed',
                'image_id': body['image_id'],
                'project_id': body['project_id'],
                'name': body.get('name') or None,
                'location': None,
                'error': None,
                'clone': mirror['clone'],
            }
            self.commits[commit_id] = known
        return 201, known

    def _commit_state(self, commit_id):
        commit = self.commits.get(commit_id)
        if commit is None:
            raise Refused(404, 'NotFound', f'no commit {commit_id}')
        if commit['state'] == 'sealed' and self.publish == 'at once':
            image_id = commit['image_id']
            used = [
                other['name']
                for other in self.commits.values()
                if other['state'] == 'published'
            ]
            if commit['name'] and commit['name'] in used:
                # As the catalog does: a blob's name is unique.
                commit['state'] = 'failed'
                commit['error'] = {'code': 'Conflict', 'message': 'used'}
                return commit
            commit['state'] = 'published'
            commit['location'] = (
                f'blob://{REPOSITORY}/{image_id}/1?mac={"0" * 64}'
            )
            self.images[image_id] = commit['project_id']
            self.blobs[image_id] = self.blobs[commit['clone']]
        elif commit['state'] == 'sealed' and self.publish == 'failed':
            commit['state'] = 'failed'
            commit['error'] = {'code': 'StoreFull', 'message': 'no room'}
        return commit
