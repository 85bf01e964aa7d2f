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
"""A real object gateway for tests: Ceph's, of one node.

Started once a session, as ordinary processes in a folder of the tests. Each
place gets a prefix of its own.
"""

import concurrent.futures
import contextlib
import itertools
import pathlib
import shutil
import socket
import sys

import fault_proxy
import obstore
import obstore.store
import pytest

from lazyblob import conf
from lazyblob.chunk_store import conformance
from lazyblob.chunk_store import objects
from lazyblob.chunk_store import s3

ALLINONE = pathlib.Path(__file__).parents[3] / 'tools' / 'allinone'
BUCKET = 'chunks'
SMALL_BUCKET = 'small'
PAGE_KEYS = 100
USER = ('writer', 'writer-key', 'writer-secret')
READER = ('reader', 'reader-key', 'reader-secret')
_PREFIXES = itertools.count(1)


class Gateway:
    """A gateway with two buckets: an ordinary one, and one with a quota.

    :ivar address: host and port
    """

    def __init__(self, folder, page_keys=PAGE_KEYS):
        if not shutil.which('radosgw'):
            pytest.fail(
                'radosgw is not installed; run "make test", whose root has '
                'it, or install radosgw, ceph-mon, ceph-mgr and ceph-osd',
                pytrace=False,
            )
        sys.path.insert(0, str(ALLINONE))
        from cloud import ceph

        # Pages of a hundred keys, unless told: few keys make many.
        self.ceph = ceph.Ceph(
            folder,
            port=_free_port(),
            more=f'rgw max listing results = {page_keys}\n',
        )
        self.address = (self.ceph.address, self.ceph.port)
        self.endpoint = self.ceph.endpoint

    def __enter__(self):
        try:
            self.ceph.start()
            self.ceph.add_user(*USER)
            self.ceph.add_user(*READER)
            for bucket in (BUCKET, SMALL_BUCKET):
                self.ceph.add_bucket(bucket, *USER[1:])
            self.ceph.admin(
                *('quota', 'set', '--quota-scope=bucket', f'--uid={USER[0]}'),
                *(f'--bucket={SMALL_BUCKET}', '--max-size=8K'),
            )
            self.ceph.admin(
                *('quota', 'enable', '--quota-scope=bucket'),
                *(f'--uid={USER[0]}', f'--bucket={SMALL_BUCKET}'),
            )
        except BaseException:
            self.ceph.stop()
            raise
        return self

    def __exit__(self, *unused):
        self.ceph.stop()

    def raw(self, bucket=BUCKET, prefix=None):
        """obstore's own store: the hand that makes trouble."""
        _name, key, secret = USER
        return obstore.store.S3Store(
            bucket,
            prefix=prefix,
            endpoint=self.endpoint,
            region='us-east-1',
            access_key_id=key,
            secret_access_key=secret,
            client_options={'allow_http': True},
        )

    def settings(self, user=USER, **more):
        """What a store is told to reach it."""
        chosen = {
            'endpoint': self.endpoint,
            'access_key_id': user[1],
            'secret_access_key': user[2],
        }
        return conf.S3Settings(**(chosen | more))


class S3Site(conformance.RemoteSite):
    """A prefix of its own in the bucket."""

    key_count = 3 * PAGE_KEYS + PAGE_KEYS // 2

    def __init__(self, gateway, proxy):
        self.gateway = gateway
        self.prefix = f'p{next(_PREFIXES)}/chunks'
        self._proxy = proxy
        self._raw = gateway.raw(prefix=self.prefix)

    def open(self, bucket=BUCKET, **more):
        return s3.S3Store(
            f's3://{bucket}/{self.prefix}', self.gateway.settings(**more)
        )

    def cut(self, name, size_bytes):
        data = bytes(obstore.get(self._raw, objects.key(name)).bytes())
        obstore.put(self._raw, objects.key(name), data[:size_bytes])

    def flip(self, name):
        data = bytearray(obstore.get(self._raw, objects.key(name)).bytes())
        data[len(data) // 2] ^= 1
        obstore.put(self._raw, objects.key(name), bytes(data))

    @contextlib.contextmanager
    def failing(self, nth):
        self._proxy.follow(lambda number: '500' if number == nth else '')
        yield self.open(endpoint=self._proxy.endpoint, retry_seconds=0)

    @contextlib.contextmanager
    def disturbed(self, fault, count=1):
        self._proxy.follow(lambda number: fault if number <= count else '')
        seconds = 20 if count == 1 else 1
        yield self.open(
            endpoint=self._proxy.endpoint,
            retry_seconds=seconds,
            timeout_seconds=1,
        )
        assert self._proxy.faults >= 1, 'no fault was met'

    def full(self):
        return contextlib.nullcontext(self.open(SMALL_BUCKET))

    def denied(self):
        return contextlib.nullcontext(self.open(user=READER))

    def away(self):
        return contextlib.nullcontext(
            self.open('no-such-bucket', retry_seconds=0)
        )

    def fill(self, objects_):
        store = self.open()
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda pair: store.put(*pair), objects_.items()))


def _free_port():
    """One whose successor is free, too: the monitor takes it."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(('127.0.0.1', 0))
            port = first.getsockname()[1]
            with contextlib.suppress(OSError, OverflowError):
                second.bind(('127.0.0.1', port + 1))
                return port


def proxy(gateway):
    """A proxy that makes trouble on the way to it."""
    return fault_proxy.FaultProxy(gateway.address)
