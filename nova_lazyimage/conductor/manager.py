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
"""What the conductor answers: the catalog's operations, and nothing else.

One RPC method, ``catalog``, takes an operation and its arguments; only the
names of the catalog's interface are operations. An error of the catalog is an
answer, not a failure of the conductor; anything else is logged here and
reaches the caller without its particulars.

Every answer, an error too, passes one place on its way out: there it is
signed, if this conductor has a key and the caller sent a nonce (signing.py).
"""

import threading
import time
from typing import Any

import oslo_messaging
from oslo_log import log as logging

from lazyblob import exceptions
from lazyblob.catalog import api
from nova_lazyimage.conductor import plain
from nova_lazyimage.conductor import rpcapi
from nova_lazyimage.conductor import signing

LOG = logging.getLogger(__name__)

OPERATIONS = frozenset(api.Catalog.__abstractmethods__)
REPEAT_SECONDS = 60.0


class Manager:
    """The endpoint.

    :param catalog: the database's
    :param signer: signs answers; None: they are as they are
    """

    target = oslo_messaging.Target(version=rpcapi.RpcCatalog.VERSION)

    def __init__(
        self, catalog: api.Catalog, signer: signing.Signer | None = None
    ) -> None:
        self._catalog = catalog
        self._signer = signer
        self._mutex = threading.Lock()
        self._said = 0.0

    def catalog(
        self,
        context: dict[str, Any],
        operation: str,
        arguments: dict[str, Any],
        nonce: str | None = None,
    ) -> dict[str, Any]:
        """Do one operation; the answer is plain data.

        :param nonce: of a caller that takes signed answers only
        """
        answer = self._answer(operation, arguments)
        if (
            self._signer is None
            or not isinstance(nonce, str)
            or len(nonce) > signing.NONCE_LENGTH_MAX
        ):
            return answer
        return self._signer.sign(operation, arguments, nonce, answer)

    def _answer(
        self, operation: str, arguments: dict[str, Any]
    ) -> dict[str, Any]:
        try:
            return plain.success(self._do(operation, arguments))
        except exceptions.CatalogUnavailable as exc:
            self._complain(exc)
            return plain.failure(exc)
        except exceptions.LazyBlobError as exc:
            LOG.debug('%s: %s: %s', operation, type(exc).__name__, exc)
            return plain.failure(exc)
        except Exception:
            LOG.exception('"%s" failed', operation)
            return plain.failure(
                exceptions.CatalogUnavailable(
                    f'the conductor failed at "{operation}"; see its log'
                )
            )

    def _do(self, operation: str, arguments: dict[str, Any]) -> Any:
        if operation not in OPERATIONS:
            raise exceptions.InvalidConfiguration(
                f'this conductor knows no operation "{operation[:40]}"; '
                'upgrade conductors before agents'
            )
        try:
            given = plain.decode(arguments)
        except (TypeError, ValueError) as exc:
            raise exceptions.InvalidConfiguration(
                f'the arguments of "{operation}" are malformed: {exc}'
            ) from exc
        if 'kind' in given:
            given['kind'] = _kind(given['kind'])
        return getattr(self._catalog, operation)(**given)

    def _complain(self, exc: Exception) -> None:
        with self._mutex:
            now = time.monotonic()
            if self._said and now - self._said < REPEAT_SECONDS:
                return
            self._said = now
        LOG.warning('The catalog\'s database does not answer: %s', exc)


def _kind(value: Any) -> api.Kind:
    try:
        return api.Kind(value)
    except ValueError as exc:
        raise exceptions.InvalidConfiguration(
            f'"{str(value)[:40]}" is no kind of blob'
        ) from exc
