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
"""Where an image's bytes are: ``blob://<uuid>/<blob>/<version>?mac=<hex>``.

A location can come from a user (``PATCH`` and ``POST`` of locations), so this
accepts one spelling only, byte for byte what the catalog mints. Its MAC is
the catalog's to check; here only the form is.
"""

import re

import glance_store.location
from glance_store import exceptions

SCHEME = 'blob'

_FORM = re.compile(
    r'blob://(?P<repository>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})'
    r'/(?P<blob>[A-Za-z0-9][A-Za-z0-9._~-]{0,254})'
    r'/(?P<version>[1-9][0-9]{0,17})'
    r'\?mac=(?P<mac>[0-9a-f]{64})',
    re.ASCII,
)


class StoreLocation(glance_store.location.StoreLocation):
    """A location that was parsed.

    :ivar repository: uuid of the repository
    :ivar blob_id: the blob; an image's has the image's id
    :ivar version: number of the version
    :ivar mac: hexadecimal digits that prove who minted it
    """

    repository: str
    blob_id: str
    version: int
    mac: str

    def process_specs(self) -> None:
        """Build it from its parts; ``specs`` has them by name."""
        self.repository = self.specs['repository']
        self.blob_id = self.specs['blob_id']
        self.version = int(self.specs['version'])
        self.mac = self.specs['mac']

    def get_uri(self) -> str:
        """The URL again, byte for byte."""
        return (
            f'{SCHEME}://{self.repository}/{self.blob_id}/{self.version}'
            f'?mac={self.mac}'
        )

    def parse_uri(self, uri: str) -> None:
        """Take a URL apart.

        :raises BadStoreUri: it is not of the one form
        """
        self.validate_schemas(uri, valid_schemas=(f'{SCHEME}://',))
        match = _FORM.fullmatch(uri)
        if match is None:
            # The URL is not repeated: it may carry a MAC.
            raise exceptions.BadStoreUri(
                message=f'a location must look like "{SCHEME}://<repository '
                f'uuid>/<blob id>/<version>?mac=<64 hex digits>"'
            )
        self.repository = match['repository']
        self.blob_id = match['blob']
        self.version = int(match['version'])
        self.mac = match['mac']
