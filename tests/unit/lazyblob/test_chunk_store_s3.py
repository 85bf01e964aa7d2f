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
"""What a gateway answers, and what the store makes of it.

A scripted gateway: a real one gives most of these answers seldom and never
when asked.
"""

import contextlib
import http.server
import logging
import re
import threading
import time

import pytest

from lazyblob import conf
from lazyblob import exceptions
from lazyblob import plugins
from lazyblob.chunk_store import objects
from lazyblob.chunk_store import retrying
from lazyblob.chunk_store import s3
from lazyblob.chunk_store.conformance import DATA
from lazyblob.chunk_store.conformance import LIMIT
from lazyblob.chunk_store.conformance import NAME

SECRET = 'not-to-be-told'


class Gateway(http.server.ThreadingHTTPServer):
    """Answers each request with the next (status, S3 code or body)."""

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.script = []
        self.requests = []

    @property
    def endpoint(self):
        return f'http://127.0.0.1:{self.server_port}'


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    # Head and body in one packet: nobody waits for a delayed ACK.
    wbufsize = -1

    def handle_any(self):
        self.rfile.read(int(self.headers.get('Content-Length') or 0))
        self.server.requests.append((self.command, self.path, self.headers))
        script = self.server.script
        status, what = script.pop(0) if len(script) > 1 else script[0]
        if status == 'cut':
            self.close_connection = True
            return
        if status == 'slow':
            time.sleep(2)
            self.close_connection = True
            return
        body = what
        if isinstance(what, str):
            body = (
                f'<Error><Code>{what}</Code><K>{SECRET}</K></Error>'.encode()
            )
        size = len(body) + (10 if status == 'short' else 0)
        self.send_response(200 if status == 'short' else status)
        self.send_header('Content-Length', str(size))
        self.send_header('Last-Modified', 'Sat, 21 Nov 2026 13:00:00 GMT')
        self.send_header('ETag', '"x"')
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = status == 'short'

    do_GET = do_PUT = do_DELETE = do_POST = do_HEAD = handle_any

    def log_message(self, *arguments):
        pass


@pytest.fixture
def gateway(monkeypatch):
    monkeypatch.setattr(retrying, 'PAUSE_SECONDS_MIN', 0.01)
    with Gateway() as server:
        thread = threading.Thread(
            target=server.serve_forever, kwargs={'poll_interval': 0.01}
        )
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def store(gateway, retry_seconds=0, **more):
    settings = conf.S3Settings(
        endpoint=gateway.endpoint,
        access_key_id='key',
        secret_access_key=SECRET,
        timeout_seconds=1,
        retry_seconds=retry_seconds,
        **more,
    )
    return s3.S3Store('s3://bucket/pre/fix', settings)


OPERATIONS = {
    'put': lambda store: store.put(NAME, DATA),
    'replace': lambda store: store.replace(NAME, DATA),
    'get': lambda store: store.get(NAME, LIMIT),
    'has': lambda store: store.has(NAME),
    'list': lambda store: list(store.list()),
    'delete': lambda store: store.delete(NAME),
    'initialise': lambda store: store.initialise(),
}


@pytest.mark.parametrize('name', OPERATIONS)
@pytest.mark.parametrize(
    ('answer', 'kind', 'said'),
    [
        ((401, b''), exceptions.StoreDenied, '401'),
        ((403, 'AccessDenied'), exceptions.StoreDenied, 'AccessDenied'),
        ((403, 'QuotaExceeded'), exceptions.StoreFull, 'make room'),
        ((507, b''), exceptions.StoreFull, 'make room'),
        ((404, 'NoSuchBucket'), exceptions.TemporaryStoreError, 'bucket'),
        ((404, b'<html>'), exceptions.TemporaryStoreError, 'endpoint'),
        ((408, b''), exceptions.TemporaryStoreError, '408'),
        ((429, b''), exceptions.TemporaryStoreError, '429'),
        ((500, 'InternalError'), exceptions.TemporaryStoreError, 'Internal'),
        ((503, 'SlowDown'), exceptions.TemporaryStoreError, 'SlowDown'),
        ((501, b''), exceptions.StoreError, '501'),
        ((400, 'InvalidRequest'), exceptions.StoreError, 'InvalidRequest'),
        (('cut', b''), exceptions.TemporaryStoreError, 'no whole answer'),
    ],
)
def test_a_failure_has_its_kind_whatever_was_asked(
    gateway, name, answer, kind, said
):
    gateway.script = [answer]
    with pytest.raises(exceptions.StoreError, match=said) as caught:
        OPERATIONS[name](store(gateway))
    assert type(caught.value) is kind
    assert 's3://bucket/pre/fix' in str(caught.value)
    assert len(gateway.requests) == 1


def test_only_a_key_that_the_gateway_misses_is_not_found(gateway):
    gateway.script = [(404, 'NoSuchKey')]
    with pytest.raises(exceptions.NotFound, match=NAME.hex()):
        store(gateway).get(NAME, LIMIT)
    assert not store(gateway).has(NAME)
    store(gateway).delete(NAME)


def test_a_body_that_is_cut_short_is_no_object(gateway):
    gateway.script = [('short', DATA[:1000])]
    with pytest.raises(exceptions.TemporaryStoreError, match='no whole'):
        store(gateway).get(NAME, LIMIT)


def test_a_body_without_end_is_not_read(gateway):
    gateway.script = [(200, bytes(100_000))]
    with pytest.raises(exceptions.ChunkCorrupt, match='at most 5000'):
        store(gateway).get(NAME, 5000)


def test_an_answer_that_does_not_come_is_not_waited_for(gateway):
    gateway.script = [('slow', b'')]
    begin = time.monotonic()
    with pytest.raises(exceptions.TemporaryStoreError, match='Timeout'):
        store(gateway).get(NAME, LIMIT)
    assert time.monotonic() - begin < 1.9


def test_a_gateway_that_is_not_there_may_come_back(gateway):
    settings = conf.S3Settings(
        endpoint='http://127.0.0.1:9',
        access_key_id='key',
        secret_access_key=SECRET,
        retry_seconds=0,
    )
    with pytest.raises(exceptions.TemporaryStoreError, match='Connect'):
        s3.S3Store('s3://bucket', settings).get(NAME, LIMIT)


def test_initialising_tells_at_once_what_is_wrong(gateway):
    gateway.script = [(404, 'NoSuchBucket')]
    with pytest.raises(exceptions.TemporaryStoreError, match='make bucket'):
        store(gateway, retry_seconds=20).initialise()
    assert len(gateway.requests) == 1


@pytest.mark.parametrize('name', sorted(set(OPERATIONS) - {'initialise'}))
def test_what_may_pass_is_repeated(gateway, name, expect_logs):
    last = {'get': (200, DATA), 'list': (200, _LISTING)}
    last['has'] = (404, 'NoSuchKey')
    gateway.script = [
        (503, 'SlowDown'),
        ('cut', b''),
        (500, b''),
        last.get(name, (200, b'')),
    ]
    # One for all three: the rate is told, not each.
    with expect_logs('Repeating what failed: .*SlowDown', count=1):
        OPERATIONS[name](store(gateway, retry_seconds=20))
    assert len(gateway.requests) == 4


_LISTING = (
    b'<ListBucketResult><Name>bucket</Name><Prefix>pre/fix/</Prefix>'
    b'<KeyCount>0</KeyCount><IsTruncated>false</IsTruncated>'
    b'</ListBucketResult>'
)


@pytest.mark.expect_logs('Repeating what failed')
def test_patience_is_bounded_and_says_how_long_it_was(gateway):
    gateway.script = [(503, 'SlowDown')]
    begin = time.monotonic()
    with pytest.raises(exceptions.TemporaryStoreError, match='attempts in'):
        store(gateway, retry_seconds=1).get(NAME, LIMIT)
    assert 0.3 < time.monotonic() - begin < 1.5
    assert 4 < len(gateway.requests) < 20


@pytest.mark.expect_logs('Repeating what failed')
def test_closing_ends_the_wait(gateway):
    gateway.script = [(503, 'SlowDown')]
    one = store(gateway, retry_seconds=60)
    threading.Timer(0.3, one.close).start()
    begin = time.monotonic()
    with pytest.raises(exceptions.TemporaryStoreError):
        one.get(NAME, LIMIT)
    assert time.monotonic() - begin < 5


def test_a_put_creates_and_leaves_what_is_whole(gateway):
    gateway.script = [
        (412, 'PreconditionFailed'),
        (206, DATA[:32]),
    ]
    with contextlib.suppress(exceptions.StoreError):
        store(gateway).put(NAME, DATA)
    (method, path, headers), *rest = gateway.requests
    assert (method, path) == ('PUT', f'/bucket/pre/fix/{objects.key(NAME)}')
    assert headers['If-None-Match'] == '*'
    assert [each[0] for each in rest] == ['GET']


@pytest.mark.expect_logs('Repeating what failed')
def test_a_put_that_meets_another_put_is_repeated(gateway):
    """The other one may fail: its being under way is no object."""
    gateway.script = [(409, 'ConditionalRequestConflict'), (200, b'')]
    store(gateway, retry_seconds=20).put(NAME, DATA)
    assert [each[0] for each in gateway.requests] == ['PUT', 'PUT']


def test_nothing_secret_is_told(gateway, caplog):
    caplog.set_level(logging.DEBUG)
    told = repr(store(gateway)._settings)
    for answer in ((403, 'InvalidAccessKeyId'), (503, 'SlowDown')):
        gateway.script = [answer]
        for operation in OPERATIONS.values():
            with pytest.raises(exceptions.StoreError) as caught:
                operation(store(gateway, retry_seconds=0))
            told += str(caught.value) + repr(caught.value.__cause__)
    assert SECRET not in told + caplog.text
    assert 'Signature' not in told


def test_requests_under_way_are_bounded(gateway):
    under_way, most = 0, 0
    lock = threading.Lock()
    one = store(gateway, connections=3)

    class Turn:
        def __enter__(self):
            nonlocal under_way, most
            self.inner.acquire()
            with lock:
                under_way += 1
                most = max(most, under_way)

        def __exit__(self, *unused):
            nonlocal under_way
            with lock:
                under_way -= 1
            self.inner.release()

    Turn.inner = one._turn
    one._turn = Turn()
    gateway.script = [(200, DATA)]
    threads = [
        threading.Thread(target=one.get, args=(NAME, LIMIT)) for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(gateway.requests) == 12
    assert 1 <= most <= 3


@pytest.mark.parametrize(
    'url',
    [
        's3://',
        's3:///prefix',
        's3://bu',
        's3://BUCKET/x',
        's3://key:secret@bucket/x',
        's3://bucket/a?b',
        's3://bucket/a#b',
        's3://bucket/a/../b',
        's3://bucket/a//b',
        's3://bucket/ü',
        'file:///a',
    ],
)
def test_a_url_that_cannot_work_is_refused(url):
    with pytest.raises(
        exceptions.InvalidConfiguration, match='chunk store'
    ) as caught:
        s3.S3Store(url)
    assert 'secret' not in str(caught.value).replace('keys', '')


@pytest.mark.parametrize(
    ('url', 'parsed'),
    [
        ('s3://bucket', ('bucket', '')),
        ('s3://bucket/', ('bucket', '')),
        ('s3://my.bucket-1/a/b/', ('my.bucket-1', 'a/b')),
    ],
)
def test_a_url_names_bucket_and_prefix(url, parsed):
    assert s3.parse(url) == parsed


class TestSettings:
    def test_what_is_not_set_is_the_default(self):
        settings = conf.s3_settings(lambda name: None)
        assert settings == conf.S3Settings()

    def test_options_are_read_under_their_prefix(self):
        values = {
            'blob_store_s3_endpoint': 'https://o.example.org',
            'blob_store_s3_connections': 7,
        }
        found = conf.store_settings(values.get, 'blob_store_')['s3']
        assert found.endpoint == 'https://o.example.org'
        assert found.connections == 7

    @pytest.mark.parametrize(
        'values',
        [
            {'s3_access_key_id': 'a'},
            {'s3_secret_access_key': 'a'},
            {'s3_endpoint': 'o.example.org'},
            {'s3_endpoint': 'https://a:b@o.example.org'},
        ],
    )
    def test_what_cannot_work_is_refused(self, values):
        with pytest.raises(
            exceptions.InvalidConfiguration, match=next(iter(values))
        ):
            conf.s3_settings(values.get)

    def test_every_option_is_a_setting_and_every_setting_an_option(self):
        import dataclasses

        options = {option.name for option in conf.s3_options('x_')}
        fields = {f'x_{f.name}' for f in dataclasses.fields(conf.S3Settings)}
        assert options == fields

    def test_help_names_the_defaults(self):
        for option in conf.s3_options():
            if option.name.endswith(('_seconds', '_connections')):
                default = str(option.sample_default)
                assert re.search(rf'\b{default}\b', option.help), option.name

    def test_no_keys_at_all_are_refused_before_a_request(self, monkeypatch):
        monkeypatch.delenv('AWS_ACCESS_KEY_ID', raising=False)
        settings = conf.S3Settings(endpoint='http://127.0.0.1:9')
        with pytest.raises(
            exceptions.InvalidConfiguration, match='s3_access_key_id'
        ):
            s3.S3Store('s3://bucket', settings).get(NAME, LIMIT)

    def test_the_environment_says_what_is_not_set(self, gateway, monkeypatch):
        monkeypatch.setenv('AWS_ENDPOINT_URL', gateway.endpoint)
        monkeypatch.setenv('AWS_ACCESS_KEY_ID', 'mine')
        monkeypatch.setenv('AWS_SECRET_ACCESS_KEY', SECRET)
        monkeypatch.setenv('AWS_REGION', 'here')
        gateway.script = [(200, DATA)]
        assert plugins.chunk_store('s3://bucket').get(NAME, LIMIT) == DATA
        signed = gateway.requests[0][2]['Authorization']
        assert '=mine/' in signed and '/here/s3/' in signed

    def test_certificates_that_are_no_certificates_are_refused(self, tmp_path):
        for file in (tmp_path / 'none', tmp_path / 'bad'):
            settings = conf.S3Settings(
                endpoint='https://127.0.0.1:9',
                access_key_id='a',
                secret_access_key='b',
                ca_file=str(file),
            )
            (tmp_path / 'bad').write_text('-----BEGIN CERTIFICATE-----\n')
            with pytest.raises(
                exceptions.InvalidConfiguration, match='certificates'
            ):
                s3.S3Store('s3://bucket', settings).get(NAME, LIMIT)


@pytest.mark.expect_logs('.')
class TestRate:
    def test_it_is_told_once_a_window_and_when_it_is_over(self, caplog):
        now = 0.0
        rate = retrying.Rate('s3://b', clock=lambda: now)

        def told():
            lines = [record.getMessage() for record in caplog.records]
            caplog.clear()
            return lines

        rate.succeeded()
        assert told() == []
        rate.repeated(Exception('first'))
        assert told() == ['Repeating what failed: first']
        for now in range(1, 60):  # noqa: B007 - the clock
            rate.repeated(Exception('more'))
            rate.succeeded()
        assert told() == []
        now = 60.0
        rate.repeated(Exception('last'))
        assert told() == [
            '"s3://b": 60 repeats and 59 successes within 60 s; the last: last'
        ]
        now = 119.0
        rate.succeeded()
        assert told() == []
        now = 121.0
        rate.succeeded()
        assert told() == ['"s3://b" answers without repeating']
        now = 200.0
        rate.succeeded()
        assert told() == []
