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
"""The options of a store, one group for each store id.

They are read when the store is configured and never again. Whatever can be
checked without a connection is checked then: the message names the option,
its value and the remedy, and Glance starts with this store switched off for
writing (``BadStoreConfiguration``).

glance_store registers the options twice, in the store's own group and, since
5.0, in ``[backend_defaults]``. They have no default there, so that an option
that is set in neither is told from one that is: the store's group wins, then
``[backend_defaults]``, then the default that its help names.
"""

import dataclasses
import importlib.metadata
from collections.abc import Mapping
from typing import Any

from oslo_config import cfg
from oslo_utils import units

from lazyblob import conf as store_conf
from lazyblob import exceptions as lazyblob_exceptions
from lazyblob import plugins
from lazyblob import urls

SHARED_GROUP = 'backend_defaults'
CATALOG_TIMEOUT_SECONDS_DEFAULT = 10
CATALOG_TIMEOUT_SECONDS_MAX = 600
THREADS_MAX = 64
CHUNK_SIZE_BYTES_DEFAULT = 512 * units.Ki
CHUNK_SIZE_BYTES_MIN = 256 * units.Ki
CHUNK_SIZE_BYTES_MAX = 4 * units.Mi

OPTIONS = [
    cfg.StrOpt(
        'blob_store_chunk_store',
        sample_default='file:///var/lib/lazyimage/repository/chunks',
        help="""
Where the chunks of images are kept, as a URL.

It must be what the agents of the compute nodes have as ``[repository]
chunk_store``, or servers cannot boot from these images. Required.

Related options:
    * ``blob_store_catalog``
""",
    ),
    cfg.StrOpt(
        'blob_store_catalog',
        secret=True,
        sample_default='rpc://',
        help="""
Where the catalog of images is asked, as a URL.

``rpc://`` asks ``lazyimage-conductor`` over ``blob_store_transport_url``, so
that this host needs no database credentials; the URL of a database asks that
database itself. Required.

Related options:
    * ``blob_store_transport_url``
""",
    ),
    cfg.StrOpt(
        'blob_store_transport_url',
        secret=True,
        sample_default='rabbit://lazyimage:password@controller/',
        help="""
The message bus on which ``lazyimage-conductor`` listens.

Required with ``blob_store_catalog = rpc://`` and refused with any other.

Related options:
    * ``blob_store_catalog``
""",
    ),
    cfg.ListOpt(
        'blob_store_conductor_public_keys',
        help="""
The public keys of ``lazyimage-conductor``, separated by commas, as made by
``lazyimage-conductor --new-signing-key``. With them only answers that one of
these keys has signed are believed; unless set, whatever answers on the
message bus is. Refused with any other catalog than ``rpc://``.

Related options:
    * ``blob_store_catalog``
    * ``[conductor] signing_key`` and ``public_keys`` of lazyimage.conf
""",
    ),
    cfg.IntOpt(
        'blob_store_catalog_timeout_seconds',
        sample_default=CATALOG_TIMEOUT_SECONDS_DEFAULT,
        help="""
Seconds to wait for an answer of ``lazyimage-conductor``: 1 to 600, and 10
unless set. A request that needs the catalog while no conductor is there is
refused after so long; of those that follow most are refused at once. Raise it
if the catalog's database is known to be slow.

Related options:
    * ``blob_store_catalog``, of which only ``rpc://`` has a time-out
""",
    ),
    cfg.IntOpt(
        'blob_store_threads',
        sample_default=2,
        help="""
Threads that compress and store the chunks of one upload, or fetch ahead those
of one download: 1 to 64. Unless set there are 2 and 4 with ``file://``, and 8
with a store that is reached over a network, as ``s3://``, since each mostly
waits for it. More of them help while the host has idle cores or the chunk
store is far away; each costs some four chunks of memory.
""",
    ),
    cfg.IntOpt(
        'blob_store_chunk_size_bytes',
        sample_default=CHUNK_SIZE_BYTES_DEFAULT,
        help="""
Bytes in a chunk of images uploaded from now on: a power of two from 262144
to 4194304, and 524288 (512 KiB) unless set. Smaller chunks let a booting
server fetch less that it does not need; larger ones make fewer objects.
Images keep the size they were uploaded with, and so does whatever is
snapshotted from them.
""",
    ),
    *store_conf.s3_options('blob_store_s3_'),
]


def list_opts() -> list[tuple[str, list[cfg.Opt]]]:
    """The options, for a sample file; the group is any store's id."""
    return [('blob', OPTIONS)]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What one store was configured with."""

    chunk_store: str
    catalog: str = dataclasses.field(repr=False)
    transport_url: str | None = dataclasses.field(repr=False)
    threads: int | None
    chunk_size_bytes: int
    catalog_timeout_seconds: int | None = None
    store_settings: Mapping[str, Any] | None = None
    public_keys: tuple[str, ...] | None = None

    @property
    def repository(self) -> tuple[str, str, str | None]:
        """Equal for two stores only if they are the same repository."""
        return (
            self.chunk_store.rstrip('/'),
            self.catalog.rstrip('/'),
            self.transport_url and self.transport_url.rstrip('/'),
        )


def bad_configuration(group: str, reason: str) -> Exception:
    """What a store raises that cannot work as it is configured."""
    # Not above: the documentation lists the options where no Glance is.
    from glance_store import exceptions

    refusal: Exception = exceptions.BadStoreConfiguration(
        store_name=f'"{group}" of type blob', reason=reason
    )
    return refusal


def settings(conf: cfg.ConfigOpts, group: str | None) -> Settings:
    """Read and check the options of a store.

    :raises BadStoreConfiguration: naming option, value and remedy
    """
    if not group:
        raise bad_configuration(
            '',
            'it works only as one of "[DEFAULT] enabled_backends"; list it '
            'there as "<store id>:blob" and put its options into '
            '"[<store id>]"',
        )
    catalog = _url(conf, group, 'blob_store_catalog', plugins.CATALOGS)
    return Settings(
        chunk_store=_url(
            conf, group, 'blob_store_chunk_store', plugins.CHUNK_STORES
        ),
        catalog=catalog,
        transport_url=_transport_url(conf, group, catalog),
        threads=_threads(conf, group),
        chunk_size_bytes=_chunk_size_bytes(conf, group),
        catalog_timeout_seconds=_catalog_timeout_seconds(conf, group, catalog),
        store_settings=_store_settings(conf, group),
        public_keys=_public_keys(conf, group, catalog),
    )


def _value(
    conf: cfg.ConfigOpts, group: str, name: str, default: Any = None
) -> Any:
    for section in (group, SHARED_GROUP):
        try:
            value = getattr(getattr(conf, section), name)
        except cfg.NoSuchOptError:
            continue
        except cfg.ConfigFileValueError as error:
            raise bad_configuration(group, str(error)) from error
        if value is not None:
            return value
    return default


def _url(
    conf: cfg.ConfigOpts, group: str, name: str, entry_points: str
) -> str:
    value = _value(conf, group, name)
    if not value:
        raise bad_configuration(
            group, f'option "[{group}] {name}" is not set; set it to a URL'
        )
    scheme = urls.scheme(value)
    known = {
        point.name
        for point in importlib.metadata.entry_points(group=entry_points)
    }
    if '://' not in value or scheme not in known:
        raise bad_configuration(
            group,
            f'option "[{group}] {name}" is "{urls.masked(value)}", which '
            f'names no known kind; begin it with one of: '
            + ', '.join(f'{each}://' for each in sorted(known)),
        )
    return value


def _transport_url(
    conf: cfg.ConfigOpts, group: str, catalog: str
) -> str | None:
    value = _value(conf, group, 'blob_store_transport_url') or None
    if catalog.startswith('rpc:') and value is None:
        raise bad_configuration(
            group,
            f'option "[{group}] blob_store_catalog" is "{catalog}", but '
            f'"blob_store_transport_url" is not set; set it to the '
            f'"transport_url" of lazyimage-conductor',
        )
    if not catalog.startswith('rpc:') and value is not None:
        raise bad_configuration(
            group,
            f'option "[{group}] blob_store_transport_url" is '
            f'"{urls.masked(value)}", but "blob_store_catalog" is '
            f'"{urls.masked(catalog)}", which needs none; remove one of them',
        )
    return value


def _catalog_timeout_seconds(
    conf: cfg.ConfigOpts, group: str, catalog: str
) -> int | None:
    name = 'blob_store_catalog_timeout_seconds'
    value = _value(conf, group, name, CATALOG_TIMEOUT_SECONDS_DEFAULT)
    if not 1 <= value <= CATALOG_TIMEOUT_SECONDS_MAX:
        raise bad_configuration(
            group,
            f'option "[{group}] {name}" is "{value}"; set it to 1 to '
            f'{CATALOG_TIMEOUT_SECONDS_MAX}, or remove it for '
            f'{CATALOG_TIMEOUT_SECONDS_DEFAULT}',
        )
    return int(value) if catalog.startswith('rpc:') else None


def _public_keys(
    conf: cfg.ConfigOpts, group: str, catalog: str
) -> tuple[str, ...] | None:
    name = 'blob_store_conductor_public_keys'
    value = tuple(_value(conf, group, name, ()))
    if value and not catalog.startswith('rpc:'):
        raise bad_configuration(
            group,
            f'option "[{group}] {name}" is "{",".join(value)}", but '
            f'"blob_store_catalog" is "{urls.masked(catalog)}", which no '
            f'conductor answers for; remove one of them',
        )
    return value if catalog.startswith('rpc:') else None


def _store_settings(conf: cfg.ConfigOpts, group: str) -> Mapping[str, Any]:
    try:
        return store_conf.store_settings(
            lambda name: _value(conf, group, name), 'blob_store_'
        )
    except lazyblob_exceptions.InvalidConfiguration as error:
        raise bad_configuration(group, str(error)) from error


def _threads(conf: cfg.ConfigOpts, group: str) -> int | None:
    """None: as many as suit the chunk store."""
    name = 'blob_store_threads'
    value = _value(conf, group, name)
    if value is None:
        return None
    if not 1 <= value <= THREADS_MAX:
        raise bad_configuration(
            group,
            f'option "[{group}] {name}" is "{value}"; set it to 1 to '
            f'{THREADS_MAX}, or remove it for as many as suit the store',
        )
    return int(value)


def _chunk_size_bytes(conf: cfg.ConfigOpts, group: str) -> int:
    name = 'blob_store_chunk_size_bytes'
    value = _value(conf, group, name, CHUNK_SIZE_BYTES_DEFAULT)
    if not CHUNK_SIZE_BYTES_MIN <= value <= CHUNK_SIZE_BYTES_MAX or value & (
        value - 1
    ):
        raise bad_configuration(
            group,
            f'option "[{group}] {name}" is "{value}"; set it to a power of '
            f'two from {CHUNK_SIZE_BYTES_MIN} to {CHUNK_SIZE_BYTES_MAX}, or '
            f'remove it for {CHUNK_SIZE_BYTES_DEFAULT}',
        )
    return int(value)
