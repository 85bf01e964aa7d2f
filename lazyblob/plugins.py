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
"""Finding chunk stores and catalogs by the scheme of their URL.

Stevedore groups ``lazyblob.chunk_store`` and ``lazyblob.catalog``; an entry
point's name is the scheme. A plug-in is called with the URL, a catalog also
with ``transport_url`` (oslo.messaging's, for ``rpc://``) and whatever else it
was given for one that is asked over a bus, a store also with
``settings`` if there are any for its scheme (:mod:`lazyblob.conf`). It must
not connect before it is used.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from stevedore import driver
from stevedore import exception

from lazyblob import exceptions
from lazyblob import urls
from lazyblob.catalog import api
from lazyblob.chunk_store import base

CHUNK_STORES = 'lazyblob.chunk_store'
CATALOGS = 'lazyblob.catalog'


def _load(group: str, url: str, what: str) -> Any:
    name = urls.scheme(url)
    if '://' not in url:
        raise exceptions.InvalidConfiguration(
            f'{what} "{urls.masked(url)}" is not a URL'
        )
    try:
        return driver.DriverManager(group, name).driver
    except exception.NoMatches as exc:
        # Stevedore says the same of a plug-in that does not import.
        reason = exc.__cause__ or exc
        raise exceptions.InvalidConfiguration(
            f'{what} "{urls.masked(url)}": "{name}" is not installed or '
            f'does not load ({reason})'
        ) from exc


def chunk_store(
    url: str, settings: Mapping[str, Any] | None = None
) -> base.ChunkStore:
    """The store of a URL.

    :param settings: what stores are told beside it, by scheme
    :raises InvalidConfiguration: no such store, or not such a URL
    """
    make = _load(CHUNK_STORES, url, 'chunk store')
    own = (settings or {}).get(urls.scheme(url))
    more = {} if own is None else {'settings': own}
    store: base.ChunkStore = make(url, **more)
    return store


def catalog(
    url: str,
    *,
    transport_url: str | None = None,
    timeout_seconds: int | None = None,
    public_keys: Sequence[str] | None = None,
) -> api.Catalog:
    """The catalog of a URL.

    :param timeout_seconds: how long one over a bus may take to answer
    :param public_keys: of those whose answers over a bus are believed
    :raises InvalidConfiguration: no such catalog, or not such a URL
    """
    more: dict[str, Any] = {}
    if public_keys is not None:
        more['public_keys'] = public_keys
    if timeout_seconds is not None:
        more['timeout_seconds'] = timeout_seconds
    found: api.Catalog = _load(CATALOGS, url, 'catalog')(
        url, transport_url=transport_url, **more
    )
    return found
