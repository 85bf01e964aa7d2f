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
"""A store over a network that lies about how much it has to say."""

import http.server
import resource
import threading

import obstore.store
import pytest

from lazyblob import exceptions
from lazyblob.chunk_store import objects

NAME = bytes(range(32))
BYTES_MAX = 1 << 20
PIECE = b'x' * (64 << 10)
FAR_TOO_MUCH = 1 << 30


class Liar(http.server.BaseHTTPRequestHandler):
    """``told`` bytes, it says; ``sent`` it sends, or until nobody listens.

    Without ``told`` it says nothing of the length.
    """

    protocol_version = 'HTTP/1.1'
    told: int | None = None
    sent = 0
    written = 0

    def do_GET(self):
        self.send_response(200)
        if self.told is None:
            self.send_header('Transfer-Encoding', 'chunked')
        else:
            self.send_header('Content-Length', str(self.told))
        self.end_headers()
        try:
            for _ in range(0, self.sent, len(PIECE)):
                if self.told is None:
                    self.wfile.write(b'%x\r\n%s\r\n' % (len(PIECE), PIECE))
                else:
                    self.wfile.write(PIECE)
                type(self).written += len(PIECE)
        except OSError:
            pass
        self.close_connection = True

    def log_message(self, *arguments):
        pass


class HttpStore(objects.ObjectStore):
    def _open(self):
        return obstore.store.HTTPStore.from_url(
            self.url,
            client_options={'allow_http': True},
            retry_config={'max_retries': 0},
        )

    def initialise(self):
        raise NotImplementedError

    put = replace = sync = initialise


@pytest.fixture
def liar():
    kind = type('One', (Liar,), {})
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), kind)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    kind.url = f'http://127.0.0.1:{server.server_port}'
    yield kind
    server.shutdown()
    thread.join()
    server.server_close()


def test_what_says_that_it_is_too_large_is_not_read(liar):
    liar.told = liar.sent = FAR_TOO_MUCH
    with pytest.raises(exceptions.ChunkCorrupt, match=str(FAR_TOO_MUCH)):
        HttpStore(liar.url).get(NAME, BYTES_MAX)


@pytest.mark.parametrize('told', [None, 1000, BYTES_MAX])
def test_what_never_ends_is_not_kept(liar, told):
    liar.told, liar.sent = told, FAR_TOO_MUCH
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        data = HttpStore(liar.url).get(NAME, BYTES_MAX)
    except exceptions.StoreError:
        pass
    else:
        assert len(data) <= BYTES_MAX
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < 64 << 10, 'KiB'
    assert liar.written < FAR_TOO_MUCH


def test_what_fits_is_read(liar):
    liar.told = liar.sent = BYTES_MAX
    assert HttpStore(liar.url).get(NAME, BYTES_MAX) == b'x' * BYTES_MAX
