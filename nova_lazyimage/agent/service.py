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
"""The agent: its parts, the order in which they start and stop.

Start: the locks; the predecessor's session with every disk of the
journal, or a new mount (session.py); what speaks to others (network.py); the
agent's own user for good; the disks of a new mount; readiness. None of it asks
conductor, store or Keystone: a host that boots while they are away serves its
disks. Until the session is resumed guests wait, so what that does not need is
not even imported before it: this module imports little, and network.py later.

One that is started beside its predecessor (keeper.py) loads all of it, says
that it waits, and begins when the state's lock is free.

Stop for a successor: end COMMITs, flush every mirror while it is served, take
no more requests, and leave; guests wait. Stop for good: take no more requests,
flush, then the mount goes, and what is still parked ends with the process.
"""

import dataclasses
import math
import os
import pathlib
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from oslo_log import log as logging

from lazyblob import exceptions
from nova_lazyimage.agent import attachments
from nova_lazyimage.agent import checks
from nova_lazyimage.agent import events
from nova_lazyimage.agent import host
from nova_lazyimage.agent import journal
from nova_lazyimage.agent import keeper
from nova_lazyimage.agent import mirrors
from nova_lazyimage.agent import repositories
from nova_lazyimage.agent import session
from nova_lazyimage.agent import state

if TYPE_CHECKING:
    from nova_lazyimage.agent import network

LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What an agent is told; ``conf/agent.py`` explains each."""

    chunk_store: str
    catalog: str
    host: str
    state_directory: str
    run_directory: str
    mount_root: str
    socket: str
    transport_url: str | None = None
    user: str = ''
    socket_group: str = ''
    metrics_address: str = ''
    cache_bytes: int = 10 * 1024**3
    cache_directory: str = ''
    cache_reserve_bytes: int = 1024**3
    cache_scrub_bytes_per_second: int = 1024**2
    engine_threads: int = 0
    fetch_threads: int = 8
    guest_fetch_threads: int = 4
    upload_threads: int = 2
    upload_bytes_per_second: int = 0
    upload_share_percent: int = 15
    fetch_timeout_seconds: int = 0
    store_alarm_seconds: float = 5.0
    slow_request_seconds: float = 1.0
    on_full: str = 'hold'
    store_settings: Mapping[str, Any] | None = None


class Agent:
    """One agent.

    :param engine_class: ``nova_lazyimage._mirror.Engine``, or a test's
    :param held: whoever keeps descriptors, with what it has kept
    """

    def __init__(
        self,
        settings: Settings,
        engine_class: Any,
        held: keeper.Keeper | None = None,
        connect: Any = None,
    ) -> None:
        if settings.guest_fetch_threads > settings.fetch_threads:
            raise exceptions.InvalidConfiguration(
                f'[agent] guest_fetch_threads is '
                f'"{settings.guest_fetch_threads}" and [agent] fetch_threads '
                f'"{settings.fetch_threads}"; reserve at most all of them'
            )
        self._settings = settings
        self._engine_class = engine_class
        self._keeper = held or keeper.Keeper({})
        self.host = settings.host
        self.pid = os.getpid()
        self.ready = threading.Event()
        self.stopping = threading.Event()
        self.folders = state.Folders(
            pathlib.Path(settings.state_directory),
            pathlib.Path(settings.run_directory),
            pathlib.Path(settings.mount_root),
            settings.cache_directory,
        )
        self.findings: list[str] = []
        self._user = host.User(settings.user)
        self._gid = host.group_id(settings.socket_group)
        self._claims = state.Claims(self.folders, settings.socket)
        self.repository = repositories.Connection(
            settings.chunk_store,
            settings.catalog,
            settings.transport_url,
            self.folders.journal / 'repository',
            connect,
            settings.store_settings,
        )
        self.chunk_store = self.repository.shown
        self.engine: Any = None
        self.network: network.Network

    def repository_uuid(self) -> str:
        """'' until the catalog answered for the first time."""
        return self.repository.uuid

    # Start

    def start(self) -> None:
        """Serve.

        :raises Locked: another agent owns the state directory, or another
            place that this one was told to use
        :raises InvalidConfiguration: an option cannot work
        """
        self.folders.make()
        self._check()
        patience_seconds = state.LOCK_PATIENCE_SECONDS
        if self._keeper.beside_predecessor:
            self._load()
            keeper.notify(keeper.WAITS)
            patience_seconds = math.inf
        self._claims.acquire(
            patience_seconds,
            self._keeper.check,
            (self._user.uid, self._user.gid),
        )
        host.prepare(self.folders, self._user, self._gid)
        with self._user.in_effect():
            self.folders.sweep()
        host.become_io_flusher()
        book = journal.Journal(self.folders)
        with self._user.in_effect():
            self.engine = self._open_engine(book)
        files = mirrors.Files(self.folders)
        self.attachments = attachments.Attachments(
            book, files, self.engine, self.repository
        )
        self.events = events.Events(self.engine, self.attachments)
        self.session = session.Session(self.engine, self._keeper, self.folders)
        self.attachments.load()
        # From now on: a disk that waits for its fence says so.
        self.events.start()
        resumed = self.session.resume(self._restore_all)
        if not resumed:
            self.session.mount()
        # Guests are served again: now there is time for the rest.
        self._load()
        from nova_lazyimage.agent import network

        self.network = network.Network(self, self._settings, book)
        self.network.bind(self._gid)
        if self._user.changes:
            os.chown(self._settings.socket, self._user.uid, -1)
        self._user.become()
        self.events.settled.set()
        self.network.listen()
        if not resumed:
            self._restore_all()
        self.findings += book.damaged
        self.network.start()
        self.ready.set()
        LOG.info(
            'Ready: %d disks below %s',
            len(self.attachments.table.all()),
            self.folders.mount_root,
        )
        keeper.notify(f'READY=1\nMAINPID={self.pid}')

    def _load(self) -> None:
        """What no disk needs; as whoever starts us may read it."""
        from nova_lazyimage.agent import network  # noqa: F401

        self._load_repository()

    def _load_repository(self) -> None:
        """Its modules, as whoever starts us may read them; asks nobody.

        One that cannot be loaded stands against attaching, and not against
        the disks that are attached.
        """
        try:
            self.repository()
        except exceptions.LazyBlobError as exc:
            LOG.error('No disk can be attached: %s', exc)

    def _check(self) -> None:
        found = checks.of_host(
            self.folders.mount_root, self.folders.run, self._settings.socket
        )
        for finding in found:
            if finding.level is checks.Level.FAILURE:
                raise exceptions.InvalidConfiguration(finding.message)
            if finding.level is checks.Level.WARNING:
                LOG.warning('%s', finding.message)
        self.findings = [f.message for f in found if not f.good]

    def _open_engine(self, book: journal.Journal) -> Any:
        settings = self._settings
        more: dict[str, Any] = {}
        if settings.engine_threads:
            more['threads'] = settings.engine_threads
        return self._engine_class(
            cache_directory=str(self.folders.cache),
            cache_bytes=settings.cache_bytes,
            cache_reserve_bytes=settings.cache_reserve_bytes,
            scrub_bytes_per_second=settings.cache_scrub_bytes_per_second,
            session_id=book.session_id(host.boot_id()),
            fetch_timeout_seconds=float(settings.fetch_timeout_seconds),
            on_full=settings.on_full,
            slow_request_seconds=settings.slow_request_seconds,
            **more,
        )

    def _restore_all(self) -> None:
        """Every disk of the journal, and none that was coming or going.

        :raises session.Lost: one of a resumed session lost its live map
        """
        with self._user.in_effect():
            gone = set(self.folders.tombstoned())
            for record in self.attachments.records():
                attached = record.state is journal.State.ATTACHED
                if attached and record.instance not in gone:
                    self.attachments.restore(record)
                else:
                    self.attachments.free(record)

    # Stop

    @property
    def may_hand_over(self) -> bool:
        """Whether a successor finds the session."""
        return self.session.kept

    @property
    def is_needed(self) -> bool:
        """Whether a disk is attached."""
        return bool(self.attachments.table.all())

    def stop(self, *, for_good: bool) -> None:
        """End in order.

        Afterwards every flushed and acknowledged write is in the deltas.

        :param for_good: the mount goes, if that is ours to do; else guests
            wait for the next agent
        """
        started = time.monotonic()
        keeper.notify('STOPPING=1')
        self.ready.clear()
        self.stopping.set()
        self.network.stop()
        try:
            if for_good:
                self.engine.stop()
            else:
                self.session.hand_over()
        except OSError as exc:
            LOG.error('A disk was not flushed at the stop: %s', exc)
        # The last words are journalled: so the lock comes after them.
        self.events.stop()
        if for_good:
            self.session.close()
        self._claims.release()
        self.network.fetcher.stop()
        LOG.info(
            'Stopped %s within %.1f s',
            'for good' if for_good else 'for a successor',
            time.monotonic() - started,
        )
