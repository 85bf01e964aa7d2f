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

Start: the state's lock; the predecessor's session with every disk of the
journal, or a new mount (session.py); the agent's own user for good; the disks
of a new mount; readiness. None of it asks conductor, store or Keystone: a host
that boots while they are away serves its disks.

Stop for a successor: end COMMITs, take no more requests, flush every mirror,
and leave; guests wait. Stop for good: the same, then the mount goes, and what
is still parked ends with the process.
"""

import dataclasses
import os
import pathlib
import threading
import time
from collections.abc import Mapping
from typing import Any

from oslo_log import log as logging

from lazyblob import exceptions
from nova_lazyimage.agent import api
from nova_lazyimage.agent import attachments
from nova_lazyimage.agent import checks
from nova_lazyimage.agent import commits
from nova_lazyimage.agent import events
from nova_lazyimage.agent import fetcher
from nova_lazyimage.agent import host
from nova_lazyimage.agent import journal
from nova_lazyimage.agent import keeper
from nova_lazyimage.agent import metrics
from nova_lazyimage.agent import mirrors
from nova_lazyimage.agent import releases
from nova_lazyimage.agent import repositories
from nova_lazyimage.agent import reverts
from nova_lazyimage.agent import routes
from nova_lazyimage.agent import session
from nova_lazyimage.agent import state
from nova_lazyimage.agent import upload

LOG = logging.getLogger(__name__)

COMMITS_STOP_SECONDS = 10.0


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
        self._lock = state.Lock(self.folders)
        self._repository = repositories.Connection(
            settings.chunk_store,
            settings.catalog,
            settings.transport_url,
            self.folders.journal / 'repository',
            connect,
            settings.store_settings,
        )
        self.chunk_store = self._repository.shown
        self.metrics = metrics.Metrics()
        self.engine: Any = None
        self._threads: list[threading.Thread] = []

    def repository_uuid(self) -> str:
        """'' until the catalog answered for the first time."""
        return self._repository.uuid

    # Start

    def start(self) -> None:
        """Serve.

        :raises Locked: another agent owns the state directory
        :raises InvalidConfiguration: an option cannot work
        """
        host.prepare(self.folders, self._user, self._gid)
        with self._user.in_effect():
            self._lock.acquire()
            self.folders.sweep()
        self._check()
        host.become_io_flusher()
        book = journal.Journal(self.folders)
        with self._user.in_effect():
            self.engine = self._open_engine(book)
        self._assemble(book)
        self.attachments.load()
        # From now on: a disk that waits for its fence says so.
        self.events.start()
        resumed = self.session.resume(self._restore_all)
        if not resumed:
            self.session.mount()
        server = api.Server(
            self._settings.socket, routes.Routes(self).table(), self._gid
        )
        if self._user.changes:
            os.chown(self._settings.socket, self._user.uid, -1)
        self._server = server
        self._load_repository()
        self._user.become()
        self.events.settled.set()
        self._server.start()
        if not resumed:
            self._restore_all()
        self._serve(book)
        self.ready.set()
        LOG.info(
            'Ready: %d disks below %s',
            len(self.attachments.table.all()),
            self.folders.mount_root,
        )
        keeper.notify(f'READY=1\nMAINPID={self.pid}')

    def _load_repository(self) -> None:
        """Its modules, as whoever starts us may read them; asks nobody.

        One that cannot be loaded stands against attaching, and not against
        the disks that are attached.
        """
        try:
            self._repository()
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

    def _assemble(self, book: journal.Journal) -> None:
        settings = self._settings
        files = mirrors.Files(self.folders)
        self.attachments = attachments.Attachments(
            book, files, self.engine, self._repository
        )
        self.commits = commits.Commits(
            book,
            files,
            self._repository,
            settings.host,
            upload.Uploader(
                settings.upload_threads,
                settings.upload_bytes_per_second,
                upload.Share(
                    settings.upload_share_percent, self.engine.requests
                ),
            ),
        )
        self.releases = releases.Releases(
            self.attachments,
            self.commits,
            book,
            self.engine,
            self._repository,
            self.folders,
        )
        self.reverts = reverts.Reverts(
            self.attachments, book, self.engine, self._repository
        )
        self.fetcher = fetcher.Fetcher(
            self.engine,
            [fetcher.Tier('store', self._fetch_from_store)],
            threads=settings.fetch_threads,
            guest_threads=settings.guest_fetch_threads,
            alarm_seconds=settings.store_alarm_seconds,
            observe=self.metrics.observe_fetch,
        )
        self.events = events.Events(self.engine, self.attachments)
        self.session = session.Session(self.engine, self._keeper, self.folders)

    def _restore_all(self) -> None:
        """Every disk of the journal, and none that was coming or going.

        :raises session.Lost: one of a resumed session lost its live map
        """
        with self._user.in_effect():
            gone = set(self.releases.tombstoned())
            for record in self.attachments.records():
                attached = record.state is journal.State.ATTACHED
                if attached and record.instance not in gone:
                    self.attachments.restore(record)
                else:
                    self.releases.free(record)

    def _serve(self, book: journal.Journal) -> None:
        """What asks the network, after every disk is served."""
        self.fetcher.start()
        for live in self.attachments.table.all():
            self.commits.recover(live)
        for instance in self.releases.tombstoned():
            self.releases.settle(instance)
        self.findings += book.damaged
        self.metrics.watch(self._figures)
        if self._settings.metrics_address:
            self.metrics.serve(self._settings.metrics_address)
        for target, name in (
            (self.releases.run, 'reconcile'),
            (self._repository.greet, 'greet'),
        ):
            thread = threading.Thread(
                target=target, args=(self.stopping,), name=name, daemon=True
            )
            thread.start()
            self._threads.append(thread)

    def _fetch_from_store(self, digest: bytes, size_bytes: int) -> bytes:
        found: bytes = self._repository().fetch(digest, size_bytes)
        return found

    def _figures(self) -> dict[str, Any]:
        described = [
            self.attachments.describe(live)
            for live in self.attachments.table.all()
        ]
        return {
            'engine': self.engine.statistics(),
            'mirrors': described,
            'failures': dict(self.fetcher.failures),
            'fetched_bytes': self.fetcher.fetched_bytes,
            'latencies': self.engine.latencies(),
            'store_away_seconds': self.fetcher.alarm.seconds,
            'commits': self.commits.counts,
            'uploaded_bytes': self.commits.uploaded_bytes,
            'releasing': sum(
                record.state is journal.State.RELEASING
                for record in self.attachments.records()
            ),
            'alarms': self.events.alarms,
        }

    # Stop

    @property
    def may_hand_over(self) -> bool:
        """Whether a successor finds the session, and somebody needs it."""
        return self.session.kept and bool(self.attachments.table.all())

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
        self.releases.wake()
        self._server.stop()
        self.commits.stop(self.attachments.table.all(), COMMITS_STOP_SECONDS)
        try:
            if for_good:
                self.engine.stop()
            else:
                self.session.hand_over()
        except OSError as exc:
            LOG.error('A disk was not flushed at the stop: %s', exc)
        self.fetcher.stop()
        self.events.stop()
        if for_good:
            self.session.close()
        self._lock.release()
        LOG.info(
            'Stopped %s within %.1f s',
            'for good' if for_good else 'for a successor',
            time.monotonic() - started,
        )
