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
"""The agent's way to its repository, made when it is needed first.

A state directory belongs to one repository: its cache, manifests and records
mean nothing in another. The repository's uuid is noted at the first contact
and compared ever after.
"""

import contextlib
import pathlib
import threading
from collections.abc import Mapping
from typing import Any

from oslo_log import log as logging

from lazyblob import exceptions
from lazyblob import urls
from nova_lazyimage.agent import state

LOG = logging.getLogger(__name__)

PAUSE_SECONDS_MAX = 30.0


class Connection:
    """Call it for the repository.

    :param noted: file that keeps the repository's uuid
    :param connect: ``lazyblob.repository.connect``, or a test's
    """

    def __init__(
        self,
        chunk_store: str,
        catalog: str,
        transport_url: str | None,
        noted: pathlib.Path,
        connect: Any = None,
        store_settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._chunk_store = chunk_store
        self._catalog = catalog
        self._transport_url = transport_url
        self._noted = noted
        self._store_settings = store_settings
        self._connect = connect
        self._mutex = threading.Lock()
        self._repository: Any = None
        self._verified = False
        self.uuid = ''
        with contextlib.suppress(FileNotFoundError):
            self.uuid = noted.read_text().strip()
        self.shown = urls.masked(chunk_store)

    def __call__(self) -> Any:
        """:raises InvalidConfiguration: an URL cannot work"""
        with self._mutex:
            if self._repository is None:
                connect = self._connect
                if connect is None:
                    from lazyblob import repository

                    connect = repository.connect
                self._repository = connect(
                    self._chunk_store,
                    self._catalog,
                    transport_url=self._transport_url,
                    store_settings=self._store_settings,
                )
            return self._repository

    def verified(self) -> Any:
        """The repository, known to be the one of this state directory.

        :raises InvalidConfiguration: it is another one
        :raises CatalogUnavailable: nobody can say yet
        """
        repository = self()
        if self._verified:
            return repository
        uuid = repository.catalog.repository().uuid
        try:
            noted = self._noted.read_text().strip()
        except FileNotFoundError:
            noted = ''
        if not noted:
            state.replace(self._noted, f'{uuid}\n'.encode())
        elif noted != uuid:
            raise exceptions.InvalidConfiguration(
                f'the state directory belongs to repository "{noted}" and '
                f'the catalog is of "{uuid}"; correct [repository] catalog, '
                'or give the agent another [agent] state_directory'
            )
        self.uuid = uuid
        self._verified = True
        return repository

    def greet(self, stopping: threading.Event) -> None:
        """Learn the repository's uuid as soon as the catalog answers."""
        pause_seconds = 0.5
        said = False
        while not stopping.is_set():
            try:
                self.verified()
                LOG.info('The repository is %s', self.uuid)
                return
            except exceptions.CatalogUnavailable as exc:
                if not said:
                    LOG.warning('The catalog does not answer yet: %s', exc)
                    said = True
            except exceptions.LazyBlobError as exc:
                LOG.error('No disk can be attached: %s', exc)
                return
            except Exception:
                LOG.exception('The repository cannot be asked')
                return
            stopping.wait(pause_seconds)
            pause_seconds = min(2 * pause_seconds, PAUSE_SECONDS_MAX)
