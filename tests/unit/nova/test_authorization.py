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
"""One byte of the image, with the token of the request, over real HTTP."""

import http.server
import threading
from unittest import mock

import glanceclient
import nova_unit
from keystoneauth1 import session
from keystoneauth1 import token_endpoint
from nova import context as nova_context
from nova import exception

from nova_lazyimage import authorization


class Glance(http.server.BaseHTTPRequestHandler):
    """Answers downloads as told, and remembers what it was asked."""

    status = 206
    body = b'\0'
    asked = []

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.asked.append((self.path, dict(self.headers)))
        self.send_response(self.status)
        self.send_header('Content-Type', 'application/octet-stream')
        self.send_header('Content-Length', str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)


class DownloadTest(nova_unit.UnitTest):
    def setUp(self):
        super().setUp()
        Glance.asked = []
        Glance.status = 206
        Glance.body = b'\0'
        server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Glance)
        threading.Thread(
            target=server.serve_forever, args=(0.02,), daemon=True
        ).start()
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        self.url = f'http://127.0.0.1:{server.server_port}'
        self.flags(api_servers=[self.url], group='glance')
        patcher = mock.patch(
            'nova.image.glance._glanceclient_from_endpoint', self.client
        )
        patcher.start()
        self.addCleanup(patcher.stop)

    def client(self, context, endpoint, version):
        auth = token_endpoint.Token(endpoint, context.auth_token)
        return glanceclient.Client(
            version,
            session=session.Session(auth=auth),
            endpoint_override=endpoint,
        )

    def check(self):
        context = nova_context.RequestContext('u', 'p', auth_token='its own')
        authorization.check_download(context, 'an-image')

    def test_one_byte_is_asked_for_with_the_token_of_the_request(self):
        self.check()
        ((path, headers),) = Glance.asked
        self.assertEqual('/v2/images/an-image/file', path)
        self.assertEqual('bytes=0-0', headers['Range'])
        self.assertEqual('its own', headers['X-Auth-Token'])

    def test_a_glance_that_sends_everything_is_left_early(self):
        Glance.status = 200
        Glance.body = b'x' * 2**20
        self.check()

    def test_what_glance_denies_is_refused(self):
        for status in (401, 403, 404):
            Glance.status = status
            self.assertRaises(exception.ImageUnacceptable, self.check)

    def test_a_glance_that_fails_is_no_permission(self):
        Glance.status = 500
        self.assertRaises(glanceclient.exc.HTTPException, self.check)
