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
"""A writer's session, from before its first question (contract 31)."""

import logging
import os
import socket
import uuid
from types import TracebackType

from lazyblob import bad
from lazyblob import exceptions
from lazyblob.catalog import api

LOG = logging.getLogger(__name__)


def default_owner() -> str:
    """This process."""
    return f'{socket.gethostname()}:{os.getpid()}'


class Session:
    """Stands from its making to :meth:`close`; to be used with ``with``.

    :param owner: default: this process
    :ivar id: what publish has to name
    :ivar bad: what was listed as bad when it began
    """

    def __init__(self, catalog: api.Catalog, owner: str = '') -> None:
        self.id = uuid.uuid4().hex
        self._catalog = catalog
        self._is_open = True
        page = catalog.begin_session(owner or default_owner(), self.id)
        self.bad = bad.Listed(catalog, page)

    def has_ended(self) -> None:
        """The catalog has ended it; there is nothing left to do."""
        self._is_open = False

    def close(self) -> None:
        """End it; once more is harmless."""
        if not self._is_open:
            return
        self._is_open = False
        try:
            self._catalog.end_session(self.id)
        except exceptions.CatalogUnavailable as exc:
            # The collector ends sessions whose owner is gone.
            LOG.warning('Session %s was not ended: %s', self.id, exc)

    def __enter__(self) -> 'Session':
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
