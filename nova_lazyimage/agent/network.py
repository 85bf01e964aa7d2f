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
"""What speaks to others: API, COMMITs, fetches, metrics, the reconciler.

Nothing of it is needed for a disk that is served, and loading it takes about
as long as all else that a start does. Guests wait while an agent takes over,
so service.py imports this module when their requests are answered again; what
loads the catalog's and the store's libraries is called later still.

Threads: made and started here; the agent's main thread starts and stops all.
"""

import threading
from typing import TYPE_CHECKING, Any

from nova_lazyimage.agent import api
from nova_lazyimage.agent import commits
from nova_lazyimage.agent import fetcher
from nova_lazyimage.agent import journal
from nova_lazyimage.agent import metrics
from nova_lazyimage.agent import releases
from nova_lazyimage.agent import reports
from nova_lazyimage.agent import reverts
from nova_lazyimage.agent import routes
from nova_lazyimage.agent import upload

if TYPE_CHECKING:
    from nova_lazyimage.agent import service

COMMITS_STOP_SECONDS = 10.0


class Network:
    """Those parts of one agent.

    :param agent: its disks are served
    """

    def __init__(
        self,
        agent: 'service.Agent',
        settings: 'service.Settings',
        book: journal.Journal,
    ) -> None:
        self._agent = agent
        self._settings = settings
        self._threads: list[threading.Thread] = []
        self.metrics = metrics.Metrics()
        self.commits = commits.Commits(
            book,
            agent.attachments.files,
            agent.repository,
            settings.host,
            upload.Uploader(
                settings.upload_threads,
                settings.upload_bytes_per_second,
                upload.Share(
                    settings.upload_share_percent, agent.engine.requests
                ),
            ),
        )
        self.releases = releases.Releases(
            agent.attachments,
            self.commits,
            book,
            agent.engine,
            agent.repository,
            agent.folders,
        )
        self.reverts = reverts.Reverts(
            agent.attachments, book, agent.engine, agent.repository
        )
        self.reports = reports.Reports(agent.repository, settings.host)
        self.fetcher = fetcher.Fetcher(
            agent.engine,
            [fetcher.Tier('store', self._fetch_from_store)],
            threads=settings.fetch_threads,
            guest_threads=settings.guest_fetch_threads,
            alarm_seconds=settings.store_alarm_seconds,
            observe=self.metrics.observe_fetch,
            report=self.reports.add,
        )
        self._server: api.Server | None = None

    def bind(self, gid: int | None) -> None:
        """Make the control socket; nobody is answered yet.

        :param gid: of the group that may use it
        """
        self._server = api.Server(
            self._settings.socket, routes.Routes(self._agent).table(), gid
        )

    def listen(self) -> None:
        """Answer; what is not ready yet says so."""
        assert self._server is not None  # noqa: S101
        self._server.start()

    def start(self) -> None:
        """Ask: fetch, finish COMMITs and releases that were under way."""
        self.fetcher.start()
        for live in self._agent.attachments.table.all():
            self.commits.recover(live)
        for instance in self._agent.folders.tombstoned():
            self.releases.settle(instance)
        self.metrics.watch(self._figures)
        if self._settings.metrics_address:
            self.metrics.serve(self._settings.metrics_address)
        for target, name in (
            (self.releases.run, 'reconcile'),
            (self._agent.repository.greet, 'greet'),
            (self.reports.run, 'reports'),
        ):
            thread = threading.Thread(
                target=target,
                args=(self._agent.stopping,),
                name=name,
                daemon=True,
            )
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """Be asked nothing more, end COMMITs; chunks are fetched on."""
        self.releases.wake()
        if self._server is not None:
            self._server.stop()
        self.commits.stop(
            self._agent.attachments.table.all(), COMMITS_STOP_SECONDS
        )

    def _fetch_from_store(self, digest: bytes, size_bytes: int) -> bytes:
        found: bytes = self._agent.repository().fetch(digest, size_bytes)
        return found

    def _figures(self) -> dict[str, Any]:
        attached = self._agent.attachments
        engine = self._agent.engine
        return {
            'engine': engine.statistics(),
            'mirrors': [
                attached.describe(live) for live in attached.table.all()
            ],
            'failures': dict(self.fetcher.failures),
            'fetched_bytes': self.fetcher.fetched_bytes,
            'latencies': engine.latencies(),
            'store_away_seconds': self.fetcher.alarm.seconds,
            'commits': self.commits.counts,
            'uploaded_bytes': self.commits.uploaded_bytes,
            'releasing': sum(
                record.state is journal.State.RELEASING
                for record in attached.records()
            ),
            'alarms': self._agent.events.alarms,
        }
