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
"""The catalog as seen by those who hold no database credentials.

:class:`RpcCatalog` implements the whole interface of the catalog by asking a
conductor; it is the only caller of the conductor's RPC, and
``manager.py`` the only server. Agents use it, and glance-api may: nothing is
imported but oslo.messaging, oslo.config and lazyblob.

A call has a time-out, and whoever gets none within it learns that the catalog
is away and not what became of the call: every call may be repeated, a publish
only as contract 21 says. Nothing is repeated here.

Whoever knows the conductors' public keys takes no answer that none of them
has signed (signing.py, contract 34).
"""

import threading
from collections.abc import Sequence
from typing import Any

import oslo_messaging
from oslo_config import cfg

from lazyblob import exceptions
from lazyblob import urls
from lazyblob.catalog import api
from nova_lazyimage.conductor import plain
from nova_lazyimage.conductor import signing

TOPIC = 'lazyimage-conductor'
# Not the process's: glance-api has another one by default than an agent.
EXCHANGE = 'lazyimage'
TIMEOUT_SECONDS = 30
#: The version that an operation came with, if it is not the first.
SINCE = dict.fromkeys(('report_bad', 'bad_digests', 'forget_bad'), '1.1')
ENDS_SESSION_VERSION = '1.3'


class RpcCatalog(api.Catalog):
    """The catalog, over oslo.messaging.

    Version history of the RPC interface:

    * 1.0 - the catalog of the first release. Its operations are arguments:
      an older conductor says which of them it does not know.
    * 1.1 - ``report_bad``, ``bad_digests``, ``forget_bad``; begin_session
      answers the first bad digests (None of a 1.0 conductor: none is known).
    * 1.2 - ``nonce``: the answer is signed, if the conductor has a key. Sent
      by callers that know a public key, and by no others.
    * 1.3 - ``ends_session`` of publish. Sent by callers that want it.

    :param url: ``rpc://``: the process's transport
    :param transport_url: another one
    :param conf: oslo.config's; default: the process's
    :param public_keys: of the conductors; None: the configuration's; empty:
        whatever answers is believed
    """

    VERSION = '1.3'
    #: What every conductor of this major version understands.
    VERSION_MIN = '1.0'
    #: The first whose answers can be signed.
    SIGNED_VERSION = '1.2'

    def __init__(
        self,
        url: str = 'rpc://',
        *,
        transport_url: str | None = None,
        conf: cfg.ConfigOpts | None = None,
        timeout_seconds: int | None = None,
        public_keys: Sequence[str] | None = None,
    ) -> None:
        if url.rstrip('/') != 'rpc:':
            raise exceptions.InvalidConfiguration(
                f'catalog "{urls.masked(url)}" must be "rpc://"; the '
                'conductor\'s address is [DEFAULT] transport_url'
            )
        self._conf = conf or cfg.CONF
        self._transport_url = transport_url
        self._timeout_seconds = timeout_seconds
        if public_keys is None:
            public_keys = self._option('public_keys', ())
        self._verifier = signing.Verifier(public_keys) if public_keys else None
        self._mutex = threading.Lock()
        self._transport: Any = None
        self._client: Any = None
        self._info: api.RepositoryInfo | None = None

    # The catalog

    def repository(self) -> api.RepositoryInfo:
        if self._info is None:
            self._info = self._call('repository')
        return self._info

    def begin_session(self, owner: str, session_id: str) -> list[str]:
        found = self._call('begin_session', owner=owner, session_id=session_id)
        return found or []

    def end_session(self, session_id: str) -> None:
        self._call('end_session', session_id=session_id)

    def sessions(self) -> list[api.Session]:
        return self._call('sessions')

    def report_bad(self, digests: Sequence[str], reporter: str) -> None:
        self._call('report_bad', digests=list(digests), reporter=reporter)

    def bad_digests(
        self,
        among: Sequence[str] | None = None,
        after: str = '',
        limit: int = api.BAD_DIGESTS_PAGE,
    ) -> list[api.BadDigest]:
        return self._call(
            'bad_digests',
            among=None if among is None else list(among),
            after=after,
            limit=limit,
        )

    def forget_bad(self, digests: Sequence[str]) -> None:
        self._call('forget_bad', digests=list(digests))

    def create(
        self,
        blob_id: str,
        *,
        kind: api.Kind,
        project_id: str,
        chunk_size_bytes: int,
        name: str = '',
    ) -> api.Blob:
        return self._call(
            'create',
            blob_id=blob_id,
            kind=kind,
            project_id=project_id,
            chunk_size_bytes=chunk_size_bytes,
            name=name,
        )

    def get(self, blob_id: str) -> api.Blob:
        return self._call('get', blob_id=blob_id)

    def find(self, name: str) -> api.Blob:
        return self._call('find', name=name)

    def list_blobs(self) -> list[api.Blob]:
        return self._call('list_blobs')

    def version(self, blob_id: str, number: int | None = None) -> api.Version:
        return self._call('version', blob_id=blob_id, number=number)

    def versions(self, blob_id: str) -> list[api.Version]:
        return self._call('versions', blob_id=blob_id)

    def list_versions(
        self, after_blob: str = '', after_number: int = 0, limit: int = 1000
    ) -> list[api.Version]:
        return self._call(
            'list_versions',
            after_blob=after_blob,
            after_number=after_number,
            limit=limit,
        )

    def clones(self, blob_id: str) -> list[api.Blob]:
        return self._call('clones', blob_id=blob_id)

    def clone(
        self,
        source: str,
        number: int | None,
        *,
        blob_id: str,
        kind: api.Kind,
        project_id: str,
        name: str = '',
    ) -> api.Version:
        return self._call(
            'clone',
            source=source,
            number=number,
            blob_id=blob_id,
            kind=kind,
            project_id=project_id,
            name=name,
        )

    def claim(self, blob_id: str, secret: str) -> int:
        return self._call('claim', blob_id=blob_id, secret=secret)

    def publish(
        self,
        blob_id: str,
        *,
        epoch: int,
        parent: int,
        commit_id: str,
        root: str,
        size_bytes: int,
        session_id: str,
        secret: str = '',
        image: api.NewImage | None = None,
        drop_parent: bool = False,
        ends_session: bool = False,
    ) -> api.Version:
        more = {'ends_session': True} if ends_session else {}
        return self._call(
            'publish',
            ENDS_SESSION_VERSION if ends_session else None,
            blob_id=blob_id,
            epoch=epoch,
            parent=parent,
            commit_id=commit_id,
            root=root,
            size_bytes=size_bytes,
            session_id=session_id,
            secret=secret,
            image=image,
            drop_parent=drop_parent,
            **more,
        )

    def find_commit(self, blob_id: str, commit_id: str) -> api.Version | None:
        return self._call('find_commit', blob_id=blob_id, commit_id=commit_id)

    def activate(self, blob_id: str) -> None:
        self._call('activate', blob_id=blob_id)

    def delete(
        self, blob_id: str, *, project_id: str | None = None, secret: str = ''
    ) -> None:
        self._call(
            'delete', blob_id=blob_id, project_id=project_id, secret=secret
        )

    def delete_version(self, blob_id: str, number: int) -> None:
        self._call('delete_version', blob_id=blob_id, number=number)

    def mint_location(
        self, blob_id: str, number: int, secret: str = ''
    ) -> str:
        return self._call(
            'mint_location', blob_id=blob_id, number=number, secret=secret
        )

    def check_location(self, url: str) -> api.Version:
        return self._call('check_location', url=url)

    def close(self) -> None:
        with self._mutex:
            transport, self._transport = self._transport, None
            self._client = None
        if transport is not None:
            transport.cleanup()

    # The call

    def _connected(self) -> Any:
        with self._mutex:
            if self._client is None:
                try:
                    self._transport = oslo_messaging.get_rpc_transport(
                        self._conf, url=self._transport_url
                    )
                except (
                    oslo_messaging.DriverLoadFailure,
                    oslo_messaging.InvalidTransportURL,
                ) as exc:
                    raise exceptions.InvalidConfiguration(
                        f'no conductor can be asked: {exc}; correct '
                        '[DEFAULT] transport_url'
                    ) from exc
                self._client = oslo_messaging.get_rpc_client(
                    self._transport,
                    oslo_messaging.Target(
                        exchange=EXCHANGE, topic=TOPIC, version=self.VERSION
                    ),
                    timeout=self._patience(),
                    version_cap=self.VERSION,
                )
            return self._client

    def _patience(self) -> int:
        if self._timeout_seconds is not None:
            return self._timeout_seconds
        return self._option('timeout_seconds', TIMEOUT_SECONDS)

    def _option(self, name: str, default: Any) -> Any:
        """Of ``[conductor]``, which glance-api does not have."""
        try:
            return getattr(self._conf.conductor, name)
        except cfg.NoSuchOptError:
            return default

    def _call(
        self, operation: str, since: str | None = None, /, **arguments: Any
    ) -> Any:
        """:param since: the version of an argument, if it is not the first"""
        given = plain.encode(arguments)
        version = since or SINCE.get(operation, self.VERSION_MIN)
        if self._verifier is None:
            answer = self._ask(version, operation, arguments=given)
        else:
            version = max(version, self.SIGNED_VERSION)  # one digit each
            nonce = signing.new_nonce()
            reply = self._ask(version, operation, arguments=given, nonce=nonce)
            answer = self._verifier.check(operation, given, nonce, reply)
        return plain.answer(answer)

    def _ask(self, version: str, operation: str, **more: Any) -> Any:
        client = self._connected().prepare(version=version)
        try:
            return client.call({}, 'catalog', operation=operation, **more)
        except (
            oslo_messaging.MessagingTimeout,
            oslo_messaging.MessageDeliveryFailure,
        ) as exc:
            raise exceptions.CatalogUnavailable(
                f'the conductor did not answer "{operation}"; see that '
                'lazyimage-conductor runs and that [DEFAULT] transport_url '
                'is right'
            ) from exc
        except oslo_messaging.UnsupportedVersion as exc:
            raise _too_old(operation, version) from exc
        except oslo_messaging.RemoteError as exc:
            if exc.exc_type == 'UnsupportedVersion':
                raise _too_old(operation, version) from exc
            raise exceptions.CatalogUnavailable(
                f'the conductor could not answer "{operation}": '
                f'{exc.exc_type}: {exc.value}; see its log'
            ) from exc
        except oslo_messaging.MessagingException as exc:
            raise exceptions.CatalogUnavailable(
                f'the conductor cannot be asked "{operation}": {exc}'
            ) from exc


def _too_old(operation: str, version: str) -> exceptions.LazyBlobError:
    if version == RpcCatalog.SIGNED_VERSION:
        return exceptions.CatalogUnavailable(
            f'the conductor is older than interface {version}, which signs '
            'answers; upgrade every conductor, or remove [conductor] '
            'public_keys until then'
        )
    return exceptions.InvalidConfiguration(
        f'the conductor is older than interface {version}, which '
        f'"{operation}" needs; upgrade conductors before agents'
    )
