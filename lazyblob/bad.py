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
"""What the catalog lists as bad, as one writer sees it.

The first page comes with the writer's session; only where that is full are
single digests asked for. What was overwritten is taken from the list after
the store's sync, so that a crash in between leaves it listed (contracts,
"Formats").

Threads: all of them.
"""

import logging
import threading
from collections.abc import Sequence

from lazyblob import exceptions
from lazyblob.catalog import api

LOG = logging.getLogger(__name__)


class Listed:
    """The list of bad digests from the begin of a session.

    :param page: what began the session answered
    """

    def __init__(self, catalog: api.Catalog, page: Sequence[str]) -> None:
        self._catalog = catalog
        self._page = frozenset(page)
        self._is_longer = len(page) >= api.BAD_DIGESTS_PAGE
        self._lock = threading.Lock()
        self._replaced: set[bytes] = set()

    def __contains__(self, name: bytes) -> bool:
        """Listed, and not overwritten since.

        :raises CatalogUnavailable: only if the list is a long one
        """
        if not self._page or name in self._replaced:
            return False
        return name.hex() in self._page or (
            self._is_longer and bool(self._catalog.bad_digests([name.hex()]))
        )

    def __bool__(self) -> bool:
        """Whether anything was listed when the session began."""
        return bool(self._page)

    def give_up(self, why: exceptions.LazyBlobError) -> None:
        """This writer may not overwrite: as if nothing were listed."""
        self._page = frozenset()
        LOG.warning('What is listed as bad is left to others: %s', why)

    def replaced(self, name: bytes) -> None:
        """It was overwritten; it stays in the list until :meth:`mended`."""
        with self._lock:
            self._replaced.add(name)

    def mended(self) -> None:
        """What was overwritten is durable: it goes from the list.

        A catalog that is away leaves it listed, which costs the next writer
        one more put.
        """
        names = [name.hex() for name in self._replaced]
        try:
            for at in range(0, len(names), api.BAD_DIGESTS_PAGE):
                self._catalog.forget_bad(names[at : at + api.BAD_DIGESTS_PAGE])
        except exceptions.LazyBlobError as exc:
            LOG.warning('%d objects stay listed as bad: %s', len(names), exc)
