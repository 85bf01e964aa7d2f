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
"""What a store is told beside its URL, and the options that say it.

A URL is logged, recorded in the catalog and shown to people, so nothing
secret may stand in it. The options are defined once, here; each door has them
in a group and under a prefix of its own: ``[repository] s3_endpoint`` in
``lazyimage.conf``, ``blob_store_s3_endpoint`` in a store's group of
``glance-api.conf``. None has a default, so that one that is not set is told
from one that is: it is then taken from the environment
(see :mod:`lazyblob.chunk_store.s3`) or is as its help says.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from oslo_config import cfg

from lazyblob import exceptions

ADDRESSING = ('path', 'virtual')
CONNECTIONS_MAX = 256
SECONDS_MAX = 600


@dataclasses.dataclass(frozen=True)
class S3Settings:
    """How a gateway is reached; empty: from the environment.

    :ivar addressing: ``path`` (``host/bucket/key``) or ``virtual``
        (``bucket.host/key``)
    :ivar timeout_seconds: of one request, its body included
    :ivar connections: requests under way at once
    :ivar retry_seconds: for how long a request that failed is repeated
    """

    endpoint: str = ''
    region: str = ''
    access_key_id: str = dataclasses.field(default='', repr=False)
    secret_access_key: str = dataclasses.field(default='', repr=False)
    addressing: str = 'path'
    ca_file: str = ''
    connect_timeout_seconds: int = 5
    timeout_seconds: int = 30
    connections: int = 32
    retry_seconds: int = 20

    @property
    def ca(self) -> bytes | None:
        """The certificates to trust beside the system's, PEM."""
        if not self.ca_file:
            return None
        try:
            return pathlib.Path(self.ca_file).read_bytes()
        except OSError as exc:
            raise exceptions.InvalidConfiguration(
                f'certificates "{self.ca_file}" cannot be read: '
                f'{exc.strerror}; correct option "s3_ca_file"'
            ) from exc


_DEFAULT = S3Settings()


def s3_options(prefix: str = 's3_') -> list[cfg.Opt]:
    """The options of ``s3://``, under a door's prefix."""
    return [
        cfg.StrOpt(
            f'{prefix}endpoint',
            sample_default='https://objects.example.org',
            help=f"""
URL of the object gateway for a chunk store ``s3://bucket/prefix``: Ceph's
RADOS Gateway, Swift with s3api, MinIO, or whatever else speaks S3. ``http://``
sends chunks in the clear. Unless set here or as ``AWS_ENDPOINT_URL`` in the
environment it is Amazon's, of the region.

Related options: ``{prefix}region``, ``{prefix}ca_file``,
``{prefix}addressing``.
""",
        ),
        cfg.StrOpt(
            f'{prefix}region',
            sample_default='us-east-1',
            help="""
Region of the bucket, which is part of every signature. Gateways of one site
mostly take any. ``us-east-1`` unless set here or as ``AWS_REGION``.
""",
        ),
        cfg.StrOpt(
            f'{prefix}access_key_id',
            secret=True,
            help=f"""
Access key of the gateway's user. An agent's needs to read objects and to
create them, neither to overwrite nor to delete; see the administration
guide. Unless set here it is taken from the environment
(``AWS_ACCESS_KEY_ID``) or, on Amazon, from the instance's role.

Related options: ``{prefix}secret_access_key``.
""",
        ),
        cfg.StrOpt(
            f'{prefix}secret_access_key',
            secret=True,
            help=f"""
Secret key that belongs to ``{prefix}access_key_id``. Keep it out of URLs:
those are shown and recorded.
""",
        ),
        cfg.StrOpt(
            f'{prefix}addressing',
            choices=ADDRESSING,
            sample_default=_DEFAULT.addressing,
            help="""
How the bucket is named in requests: ``path`` (``https://host/bucket/key``),
the default, works with every gateway; ``virtual``
(``https://bucket.host/key``) is for those that insist on it, and needs their
names in the DNS.
""",
        ),
        cfg.StrOpt(
            f'{prefix}ca_file',
            help="""
File with certificates (PEM) of the authority that signed the gateway's, if
the system does not know it already. They are trusted beside the system's.
""",
        ),
        cfg.IntOpt(
            f'{prefix}connect_timeout_seconds',
            min=1,
            max=SECONDS_MAX,
            sample_default=_DEFAULT.connect_timeout_seconds,
            help=f"""
Seconds to wait for a connection to the gateway;
{_DEFAULT.connect_timeout_seconds} unless set.
""",
        ),
        cfg.IntOpt(
            f'{prefix}timeout_seconds',
            min=1,
            max=SECONDS_MAX,
            sample_default=_DEFAULT.timeout_seconds,
            help=f"""
Seconds that one request may take, its body included;
{_DEFAULT.timeout_seconds} unless set. Raise it where so many chunks at once
as ``{prefix}connections`` allows need longer on their way.

Related options: ``{prefix}retry_seconds``.
""",
        ),
        cfg.IntOpt(
            f'{prefix}connections',
            min=1,
            max=CONNECTIONS_MAX,
            sample_default=_DEFAULT.connections,
            help=f"""
Requests that one process has under way at once;
{_DEFAULT.connections} unless set. More wait their turn.
""",
        ),
        cfg.IntOpt(
            f'{prefix}retry_seconds',
            min=0,
            max=SECONDS_MAX,
            sample_default=_DEFAULT.retry_seconds,
            help=f"""
For how many seconds a request that failed for a passing reason (no
connection, a time-out, an answer of 429 or 5xx) is repeated, after pauses
that grow and are jittered; {_DEFAULT.retry_seconds} unless set, and 0 for
never. After that an upload fails; a guest's read goes on waiting for its
chunk.
""",
        ),
    ]


def s3_settings(
    value: Callable[[str], Any], prefix: str = 's3_'
) -> S3Settings:
    """What the options say.

    :param value: of an option by its name; None or '': it is not set
    :raises InvalidConfiguration: two of them contradict each other
    """
    chosen = {}
    for field in dataclasses.fields(S3Settings):
        found = value(prefix + field.name)
        if found is not None and found != '':
            chosen[field.name] = found
    settings = S3Settings(**chosen)
    if bool(settings.access_key_id) != bool(settings.secret_access_key):
        raise exceptions.InvalidConfiguration(
            f'of "{prefix}access_key_id" and "{prefix}secret_access_key" '
            f'only one is set; set both, or neither'
        )
    if '@' in settings.endpoint or not (
        not settings.endpoint
        or settings.endpoint.startswith(('http://', 'https://'))
    ):
        raise exceptions.InvalidConfiguration(
            f'"{prefix}endpoint" is no "https://host" without a user; keys '
            f'belong into "{prefix}access_key_id"'
        )
    return settings


def store_settings(
    value: Callable[[str], Any], prefix: str = ''
) -> Mapping[str, Any]:
    """Everything that stores are told, by the scheme of their URL.

    :param prefix: the door's, as ``blob_store_``
    """
    return {'s3': s3_settings(value, f'{prefix}s3_')}
