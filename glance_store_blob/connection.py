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
"""The repository behind a store, connected to when it is first needed.

glance-api must start while the conductor is away, so nothing is connected to
before a request needs it. A failure is remembered for ``PAUSE_SECONDS``:
requests that follow fail at once, instead of one after the other each after
its own time-out. A forked process connects anew, since neither database
connections nor the chunk store's threads survive a fork.

Threads: one instance serves them all; whoever comes while another connects
waits for its result.
"""

import os
import threading
import time
from collections.abc import Callable

from glance_store import exceptions

from glance_store_blob import conf
from glance_store_blob import errors
from lazyblob import repository

PAUSE_SECONDS = 5.0


class Connection:
    """One repository.

    :param settings: where it is; also an attribute
    :param check: called with its uuid before it is used; raises to refuse it
    :ivar uuid: its uuid; None until it answered for the first time
    """

    def __init__(
        self, settings: conf.Settings, check: Callable[[str], None]
    ) -> None:
        self.uuid: str | None = None
        self.settings = settings
        self._check = check
        self._connecting = threading.Lock()
        self._connected: tuple[int, repository.Repository] | None = None
        self._failed_until = 0.0
        self._failure: exceptions.GlanceStoreException | None = None

    def get(self) -> repository.Repository:
        """The repository.

        :raises Unavailable: its catalog does not answer
        :raises GlanceStoreException: it is not one, or it is refused
        """
        connected = self._connected
        if connected is None or connected[0] != os.getpid():
            with self._connecting:
                connected = self._connected
                if connected is None or connected[0] != os.getpid():
                    connected = (os.getpid(), self._connect())
                    self._connected = connected
        return connected[1]

    def _connect(self) -> repository.Repository:
        if self._failure is not None and time.monotonic() < self._failed_until:
            raise type(self._failure)(message=self._failure.msg)
        try:
            with errors.translated():
                connected = repository.connect(
                    self.settings.chunk_store,
                    self.settings.catalog,
                    transport_url=self.settings.transport_url,
                    timeout_seconds=self.settings.catalog_timeout_seconds,
                    store_settings=self.settings.store_settings,
                    public_keys=self.settings.public_keys,
                )
                uuid = connected.info.uuid
            self._check(uuid)
        except exceptions.GlanceStoreException as error:
            self._failure = error
            self._failed_until = time.monotonic() + PAUSE_SECONDS
            raise
        self._failure = None
        self.uuid = uuid
        return connected
