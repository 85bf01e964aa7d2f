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
"""Chunks in a bucket: ``s3://bucket/prefix``.

obstore does the talking: signatures, connections, TLS. What it is told comes
from :class:`lazyblob.conf.S3Settings`; what is empty there comes from the
environment, by the names that every S3 tool knows (``AWS_ENDPOINT_URL``,
``AWS_REGION``, ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``,
``AWS_SESSION_TOKEN``, ``AWS_CA_BUNDLE``). Nothing of it stands in the URL, in
messages or in logs: of a gateway's answer only the status and the S3 code are
passed on, since the rest may quote keys and signatures.

A put creates (``If-None-Match: *``) and does not replace what is there with a
plausible length, so that an agent's key needs no right to overwrite; what is
too short is overwritten. The bucket is the operator's to make.

Durability: a put that was answered is on the gateway's disks by its own
rules, so that :meth:`S3Store.sync` has nothing to do. Consistency: the
gateway must let a get that follows an answered put find the object, as S3
itself (since 2020), Ceph's gateway and MinIO do.

What an answer means:

- 404 with ``NoSuchKey``: the object is absent. Any other 404 (no such bucket,
  a proxy without its gateway) says nothing about the object and may pass.
- 401, 403: denied, but for a quota that is used up: full, as 507 is.
- 408, 409, 429, 5xx but 501 and 507, no or no whole answer: it may pass, and
  is repeated for ``retry_seconds``.
- the rest: an error.

Threads: one instance serves them all; ``connections`` requests at once.
"""

import functools
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import obstore
import obstore.exceptions
import obstore.store

from lazyblob import conf
from lazyblob import digest as digests
from lazyblob import exceptions
from lazyblob.chunk_store import objects
from lazyblob.chunk_store import retrying

T = TypeVar('T')

REGION_DEFAULT = 'us-east-1'
PAGE_KEYS = 1000

_URL = re.compile(r's3://([a-z0-9][a-z0-9._-]{1,61}[a-z0-9])(/.*)?\Z')
# Ends in what cannot be taken for a key of ours, nor changed by joining.
_PREFIX = re.compile(r'[A-Za-z0-9!_.*()-]+(/[A-Za-z0-9!_.*()-]+)*\Z')
_STATUS = re.compile(r'\bstatus(?: code)?: (\d{3})\b')
_CODE = re.compile(r'<Code>(\w{1,64})</Code>')
_KIND = re.compile(r'\bkind: (\w{1,32})\b')
_PASSING = (408, 409, 429)
_QUOTA = ('QuotaExceeded', 'XMinioStorageFull', 'ServiceQuotaExceeded')


def parse(url: str) -> tuple[str, str]:
    """Bucket and prefix, the latter without slashes around it.

    :raises InvalidConfiguration: not ``s3://bucket/prefix``
    """
    found = _URL.match(url)
    prefix = (found[2] or '').strip('/') if found else ''
    if not found or (prefix and not _PREFIX.match(prefix)):
        # The URL is not repeated: somebody may have put keys into it.
        raise exceptions.InvalidConfiguration(
            'chunk store is no "s3://bucket/prefix" of letters, digits and '
            '"!_.*()-"; keys and endpoint have options of their own'
        )
    if any(part in ('.', '..') for part in prefix.split('/')):
        raise exceptions.InvalidConfiguration(
            f'chunk store "{url}" has "." or ".." in its prefix; leave it out'
        )
    return found[1], prefix


class S3Store(objects.ObjectStore):
    """Objects in a bucket.

    :param settings: None: everything from the environment
    """

    is_remote = True

    def __init__(
        self, url: str, settings: conf.S3Settings | None = None
    ) -> None:
        super().__init__(url)
        self._bucket, self._prefix = parse(url)
        self._settings = settings or conf.S3Settings()
        self._turn = threading.BoundedSemaphore(self._settings.connections)
        self._patience = retrying.Patience(url, self._settings.retry_seconds)

    def _open(self) -> obstore.store.S3Store:
        ours = self._settings
        endpoint = (
            ours.endpoint
            or os.environ.get('AWS_ENDPOINT_URL_S3')
            or os.environ.get('AWS_ENDPOINT_URL')
            or ''
        ).rstrip('/')
        ca_file = ours.ca_file or os.environ.get('AWS_CA_BUNDLE') or ''
        config: dict[str, Any] = {
            'bucket': self._bucket,
            'region': ours.region
            or os.environ.get('AWS_REGION')
            or os.environ.get('AWS_DEFAULT_REGION')
            or REGION_DEFAULT,
            'virtual_hosted_style_request': ours.addressing == 'virtual',
            'conditional_put': 'etag',
            # The bulk call is a POST that not every gateway has.
            'disable_bulk_delete': True,
        }
        if ours.access_key_id:
            config['access_key_id'] = ours.access_key_id
            config['secret_access_key'] = ours.secret_access_key
        elif endpoint and not os.environ.get('AWS_ACCESS_KEY_ID'):
            raise exceptions.InvalidConfiguration(
                f'no keys for "{self.url}"; set "s3_access_key_id" and '
                f'"s3_secret_access_key", or AWS_ACCESS_KEY_ID and '
                f'AWS_SECRET_ACCESS_KEY in the environment'
            )
        if endpoint:
            if ours.addressing == 'virtual':
                scheme, _, host = endpoint.partition('://')
                endpoint = f'{scheme}://{self._bucket}.{host}'
            config['endpoint'] = endpoint
        options: dict[str, Any] = {
            'allow_http': endpoint.startswith('http://'),
            'connect_timeout': timedelta(seconds=ours.connect_timeout_seconds),
            'timeout': timedelta(seconds=ours.timeout_seconds),
            'pool_max_idle_per_host': str(ours.connections),
        }
        ca = conf.S3Settings(ca_file=ca_file).ca
        if ca:
            options['root_certificate'] = ca
        try:
            return obstore.store.S3Store(
                prefix=self._prefix or None,
                config=config,  # type: ignore[arg-type]
                client_options=options,  # type: ignore[arg-type]
                retry_config={'max_retries': 0},
            )
        except (obstore.exceptions.BaseError, ValueError) as exc:
            raise exceptions.InvalidConfiguration(
                f'"{self.url}" cannot be used as it is configured; correct '
                f'the endpoint or the certificates'
            ) from exc

    def initialise(self) -> None:
        """Look whether the bucket is there and may be listed."""

        def look() -> None:
            next(iter(obstore.list(self._inner, chunk_size=1)), None)

        # Somebody sits before it: what is wrong is told at once.
        self._once('list', b'', look)

    def put(self, digest: bytes, *parts: digests.Buffer) -> bool:
        data = b''.join(parts)

        def create() -> bool:
            try:
                self._send(digest, data, 'create')
            except obstore.exceptions.AlreadyExistsError as exc:
                if _status(str(exc)) == 409:
                    # Another put of it is under way, and may yet fail.
                    raise self._failed('write', exc, digest) from exc
                return False
            return True

        if self._call('write', digest, create):
            return True
        if self.has(digest):
            return False
        self.replace(digest, data)
        return True

    def replace(self, digest: bytes, *parts: digests.Buffer) -> None:
        data = b''.join(parts)
        self._call(
            'replace', digest, lambda: self._send(digest, data, 'overwrite')
        )

    def _send(self, digest: bytes, data: bytes, mode: Any) -> None:
        obstore.put(
            self._inner,
            objects.key(digest),
            data,
            mode=mode,
            use_multipart=False,
        )

    def sync(self, digests: Iterable[bytes]) -> None:
        """Nothing: what was answered is durable."""

    def list(self) -> Iterator[tuple[bytes, int]]:
        """Page by page.

        A page that fails is asked for again, from the key where it began.
        """
        last: str | None = None
        while page := self._call(
            'list', b'', functools.partial(self._page, last)
        ):
            for key, size_bytes in page:
                digest = objects.digest_of(key)
                if digest is not None:
                    yield digest, size_bytes
            last = page[-1][0]

    def _page(self, last: str | None) -> Sequence[tuple[str, int]]:
        """The keys that follow one, of the first page that has any."""
        stream = obstore.list(self._inner, offset=last, chunk_size=PAGE_KEYS)
        for batch in stream:
            if batch:
                return [(each['path'], each['size']) for each in batch]
        return ()

    def close(self) -> None:
        self._patience.stop()

    def _call(self, verb: str, digest: bytes, operation: Callable[[], T]) -> T:
        return self._patience.repeat(
            lambda: self._once(verb, digest, operation)
        )

    def _once(self, verb: str, digest: bytes, operation: Callable[[], T]) -> T:
        with self._turn:
            try:
                return operation()
            except (obstore.exceptions.BaseError, OSError) as exc:
                raise self._failed(verb, exc, digest) from None

    def _failed(
        self, verb: str, exc: BaseException, digest: bytes
    ) -> exceptions.LazyBlobError:
        """What a failure means; see the module."""
        text = str(exc)
        status, code = _status(text), _first(_CODE, text)
        where = f'"{digest.hex()}" in ' if digest else ''
        what = f'could not {verb} {where}"{self.url}": '
        if status:
            what += f'status {status}' + (f' ({code})' if code else '')
        else:
            reason = _first(_KIND, text)
            what += f'no whole answer ({reason})' if reason else 'no answer'
        if status == 404 and code == 'NoSuchKey':
            return exceptions.NotFound(f'{what}: it is not there')
        if status == 404:
            return exceptions.TemporaryStoreError(
                f'{what}; make bucket "{self._bucket}", or correct the '
                f'endpoint'
            )
        if status == 507 or code in _QUOTA:
            return exceptions.StoreFull(
                f'{what}; make room, or raise the quota'
            )
        if status in (401, 403):
            return exceptions.StoreDenied(
                f'{what}; check the access key and what it may do, and the '
                f'clock of this host'
            )
        if status == 416:
            return objects.EmptyObject(what)
        if status in _PASSING or (status >= 500 and status != 501):
            return exceptions.TemporaryStoreError(what)
        if not status and not _is_ours(text):
            return exceptions.TemporaryStoreError(what)
        return exceptions.StoreError(what)


def _status(text: str) -> int:
    """0: the failure is none of the gateway's saying."""
    return int(_first(_STATUS, text) or 0)


def _first(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.search(text)
    return found[1] if found else ''


def _is_ours(text: str) -> bool:
    """A request that could not be made will not be made the next time."""
    return 'kind: Builder' in text or 'BareRedirect' in text
