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
"""Locations: URLs of versions that nobody but a repository can make.

``blob://<repository uuid>/<blob id>/<version>?mac=<64 hex digits>``. The MAC
(HMAC-SHA256 by the repository's secret over the rest of the URL) proves that
the repository minted it, not that its bearer owns it (contract 32).
"""

import hmac
import re
from typing import NamedTuple

from lazyblob import exceptions

SCHEME = 'blob'
_LOCATION = re.compile(
    r'blob://([0-9a-f-]{36})/([A-Za-z0-9._~-]{1,255})/([1-9][0-9]{0,17})'
    r'\?mac=([0-9a-f]{64})',
    re.ASCII,
)
BLOB_ID = re.compile(r'[A-Za-z0-9][A-Za-z0-9._~-]{0,254}', re.ASCII)


class Location(NamedTuple):
    repository_uuid: str
    blob_id: str
    number: int
    mac: str


def mint(secret: bytes, repository_uuid: str, blob_id: str, n: int) -> str:
    rest = f'{SCHEME}://{repository_uuid}/{blob_id}/{n}'
    return f'{rest}?mac={_mac(secret, rest)}'


def parse(url: str) -> Location:
    """:raises BadLocation: malformed; nothing is proved by its answer"""
    match = _LOCATION.fullmatch(url)
    if match is None:
        raise exceptions.BadLocation(
            'location is malformed; it must be '
            '"blob://<repository>/<blob>/<version>?mac=<64 hex digits>"'
        )
    return Location(match[1], match[2], int(match[3]), match[4])


def check(secret: bytes, repository_uuid: str, url: str) -> Location:
    """:raises BadLocation: malformed, of another repository, or forged"""
    location = parse(url)
    if location.repository_uuid != repository_uuid:
        raise exceptions.BadLocation(
            f'location names the repository "{location.repository_uuid}"; '
            f'this one is "{repository_uuid}"'
        )
    expected = _mac(secret, url.partition('?')[0])
    if not hmac.compare_digest(expected, location.mac):
        raise exceptions.BadLocation(
            f'location of blob "{location.blob_id}" carries a MAC that this '
            f'repository did not make'
        )
    return location


def _mac(secret: bytes, rest: str) -> str:
    return hmac.new(secret, rest.encode(), 'sha256').hexdigest()
