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
"""COMMIT: what a mirror holds becomes a version, while its guest runs.

The order (contracts 17 to 24): the engine freezes and seals (or seals what a
client froze before, see freezes.py), the journal names the COMMIT, the client
is answered; dirty chunks go to the store, each freed of its protection as
soon as it is there; the journal names parent and root, the catalog publishes
version and image in one transaction; the journal names the new parent, the
engine drops the frozen bits; the location is minted.

Until the journal names the new parent, every way out is the same: what was
frozen is dirty again. A publish whose outcome is unknown is never assumed to
have failed: the epoch is raised, so that it can no longer land late, and the
catalog is asked whether it did. An agent that stops or dies before it knows
leaves the journal as it is, and its successor asks.

======================================= ======================================
killed                                  found by the next agent
======================================= ======================================
before the journal names the COMMIT     no COMMIT; the engine's recovery made
                                        the frozen blocks dirty again
stage *sealed*                          the same; the COMMIT failed with
                                        ``Interrupted``
stage *publishing*                      asks the catalog: it landed, and this
                                        is the new parent, or it failed with
                                        ``Interrupted``; blocks are dirty
the journal names the new parent        published; blocks that were frozen may
                                        be dirty: their chunks are recognised
its location was not minted             it is minted now
======================================= ======================================

Threads: one for each COMMIT under way; chunks are read, hashed and put by a
pool that all of them share.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

from oslo_log import log as logging

from lazyblob import exceptions
from nova_lazyimage.agent import answers
from nova_lazyimage.agent import errors
from nova_lazyimage.agent import freezes
from nova_lazyimage.agent import journal
from nova_lazyimage.agent import mirrors
from nova_lazyimage.agent import publishing
from nova_lazyimage.agent import upload

LOG = logging.getLogger(__name__)

CANCEL_SECONDS_MAX = 30.0


class Job:
    """One COMMIT under way."""

    def __init__(self, live: mirrors.Live, sealed: Any) -> None:
        self.live = live
        self.sealed = sealed
        self.cancelled = threading.Event()
        self.agent_stops = False
        self.thread: threading.Thread | None = None
        self.committed_bytes = 0
        self.total_bytes = 0
        self.statistics: dict[str, Any] = {}

    def check(self) -> None:
        """:raises Cancelled: or Interrupted; somebody ends this COMMIT"""
        if not self.cancelled.is_set():
            return
        if self.agent_stops:
            raise errors.Interrupted(
                'the agent stopped during the commit; what it held is dirty '
                'again: commit again with a new id'
            )
        raise errors.Cancelled('the disk was released during the commit')


class Commits:
    """The COMMITs of this host.

    :param uploader: brings the chunks of all of them to the store
    """

    def __init__(
        self,
        book: journal.Journal,
        files: mirrors.Files,
        repository: Callable[[], Any],
        host: str,
        uploader: upload.Uploader,
    ) -> None:
        self._journal = book
        self._files = files
        self._repository = repository
        self._host = host
        self._publisher = publishing.Publisher(book, repository)
        self._uploader = uploader
        self._counts = {'published': 0, 'failed': 0}
        self._counts_mutex = threading.Lock()
        self.uploaded_bytes = 0

    @property
    def counts(self) -> dict[str, int]:
        """How many COMMITs ended how."""
        with self._counts_mutex:
            return dict(self._counts)

    def start(
        self,
        live: mirrors.Live,
        commit_id: str,
        *,
        image_id: str = '',
        project_id: str = '',
        name: str = '',
        token: str = '',
    ) -> tuple[dict[str, Any], bool]:
        """Seal a mirror and start its upload.

        :param token: seal what was frozen under it; '': freeze now
        :returns: the COMMIT's state, and whether this call began it
        :raises Conflict: another COMMIT of this mirror is under way
        :raises FreezeExpired: that freeze holds no more
        """
        mirror = live.serving()
        with live.lock:
            record = live.record
            if record.state is not journal.State.ATTACHED:
                raise errors.Conflict('this disk is being released')
            known = answers.known(live, commit_id)
            if known is not None:
                return known, False
            if record.commit is not None or live.job is not None:
                raise errors.Conflict(
                    f'another commit of disk "{record.disk}" of server '
                    f'"{record.instance}" is under way; wait for it'
                )
            sealed = self._seal(live, mirror, token)
            try:
                job = Job(live, sealed)
                job.total_bytes = len(sealed.chunks) * record.chunk_size_bytes
                record.commit = journal.Commit(
                    commit_id=commit_id,
                    stage=journal.Stage.SEALED,
                    image_id=image_id,
                    project_id=project_id or record.project_id,
                    name=name,
                    size_bytes=sealed.size_bytes,
                    total_bytes=job.total_bytes,
                )
                self._journal.save(record)
                live.job = job
                job.thread = threading.Thread(
                    target=self._run,
                    args=(job,),
                    name=f'commit-{commit_id[:8]}',
                    daemon=True,
                )
                job.thread.start()
            except BaseException:
                sealed.abandon()
                live.job = record.commit = None
                # What the journal says of it by now is an interrupted
                # COMMIT's, for whoever reads it.
                with contextlib.suppress(OSError):
                    self._journal.save(record)
                raise
            LOG.info(
                'Commit %s of disk %s of server %s is sealed: %d bytes in '
                'dirty chunks',
                commit_id,
                record.disk,
                record.instance,
                job.total_bytes,
            )
            known = answers.known(live, commit_id)
            assert known is not None  # noqa: S101
            return known, True

    @staticmethod
    def _seal(live: mirrors.Live, mirror: Any, token: str) -> Any:
        if token:
            return freezes.seal(live, token)
        try:
            return mirror.freeze()
        except BlockingIOError as exc:
            raise errors.Conflict(
                f'disk "{live.record.disk}" of server '
                f'"{live.record.instance}" is frozen, or sealed; name its '
                'token, thaw it, or wait for its end'
            ) from exc

    def state(self, live: mirrors.Live, commit_id: str) -> dict[str, Any]:
        """:raises NoSuchCommit:"""
        with live.lock:
            known = answers.known(live, commit_id)
        if known is None:
            raise errors.NoSuchCommit(
                f'disk "{live.record.disk}" of server '
                f'"{live.record.instance}" has no commit "{commit_id}"'
            )
        return known

    # The job

    def _run(self, job: Job) -> None:
        live = job.live
        upload.be_nice()
        try:
            self._commit(job)
            with self._counts_mutex:
                self._counts['published'] += 1
        except Exception as exc:
            self._fail(live, exc, job)
        finally:
            with live.lock:
                live.job = None

    def _commit(self, job: Job) -> None:
        record = job.live.record
        repository = self._repository()
        with self._begin(job, repository) as commit:
            self._uploader.run(job, commit)
            root = commit.finish()
            job.statistics = upload.plain(commit.statistics)
            self._publisher.publish(job, root, commit)
        with self._counts_mutex:
            self.uploaded_bytes += job.committed_bytes
        with job.live.lock:
            result = record.results[-1]
        LOG.info(
            'Commit %s of disk %s of server %s is version %d of blob %s',
            result.commit_id,
            record.disk,
            record.instance,
            result.version,
            result.blob_id,
        )
        self._publisher.mint(job.live, job)

    def _begin(self, job: Job, repository: Any) -> Any:
        """A version in the making, on the parent; it has a session."""
        record = job.live.record
        assert record.parent is not None  # noqa: S101
        blob = repository.catalog.get(record.blob_id)
        parent = self._files.manifest(record.parent.root)
        if parent is None:
            parent = repository.tree(record.parent.root, blob.scope)
        return repository.commit(
            blob, parent, size_bytes=job.sealed.size_bytes, owner=self._host
        )

    def _fail(
        self, live: mirrors.Live, exc: BaseException, job: Job | None
    ) -> None:
        """What was frozen is dirty again; the client reads why."""
        record = live.record
        _, code, message = errors.describe(exc)
        if isinstance(exc, publishing.Unknown):
            # The journal goes on saying that it is under way.
            LOG.warning('%s', exc)
            if job is not None:
                job.sealed.abandon()
            return
        with live.lock:
            if job is not None:
                job.sealed.abandon()
            commit = record.commit
            if commit is None:
                self._fail_location(record, code, message)
                return
            record.add_result(
                journal.Result(
                    commit_id=commit.commit_id,
                    state='failed',
                    blob_id=record.blob_id,
                    image_id=commit.image_id,
                    total_bytes=commit.total_bytes,
                    committed_bytes=job.committed_bytes if job else 0,
                    error_code=code,
                    error=message,
                )
            )
            record.commit = None
            # A restart says "Interrupted" of it instead.
            with contextlib.suppress(OSError):
                self._journal.save(record)
        with self._counts_mutex:
            self._counts['failed'] += 1
        unexpected = not isinstance(
            exc, (errors.AgentError, exceptions.LazyBlobError, OSError)
        )
        LOG.warning(
            'Commit %s of disk %s of server %s failed (%s): %s',
            commit.commit_id,
            record.disk,
            record.instance,
            code,
            message,
            exc_info=exc if unexpected else None,
        )

    def _fail_location(
        self, record: journal.Record, code: str, message: str
    ) -> None:
        """The version stands, but its image can be named to nobody."""
        result = record.results[-1]
        LOG.warning(
            'Commit %s was published; its image %s has no location: %s',
            result.commit_id,
            result.image_id,
            message,
        )
        result.state, result.error_code, result.error = 'failed', code, message
        with contextlib.suppress(OSError):
            self._journal.save(record)

    # Release, restart, stop

    def cancel(self, live: mirrors.Live) -> None:
        """End a mirror's COMMIT, if there is one; returns when it ended."""
        with live.lock:
            job = live.job
        if job is None or job.thread is None:
            return
        job.cancelled.set()
        if live.mirror is not None:
            live.mirror.end_misses()
        if job.thread is not threading.current_thread():
            job.thread.join(CANCEL_SECONDS_MAX)
            if job.thread.is_alive():
                LOG.warning(
                    'A commit of disk %s of server %s does not end',
                    live.record.disk,
                    live.record.instance,
                )

    def recover(self, live: mirrors.Live) -> None:
        """After a restart: say what became of the COMMIT (contract 17)."""
        record = live.record
        commit = record.commit
        if commit is None:
            result = record.results[-1] if record.results else None
            if (
                result is not None
                and result.state == 'published'
                and result.image_id
                and not result.location
            ):
                self._in_background(live, self._publisher.mint)
            return
        if commit.stage is journal.Stage.SEALED:
            self._fail(live, self._interrupted(), None)
            return
        self._in_background(live, self._resolve)

    @staticmethod
    def _interrupted() -> errors.AgentError:
        return errors.Interrupted(
            'the agent was restarted during the commit; what it held is '
            'dirty again: commit again with a new id'
        )

    def _in_background(
        self,
        live: mirrors.Live,
        target: Callable[[mirrors.Live, Job], None],
    ) -> None:
        job = Job(live, publishing.NotSealed())

        def run() -> None:
            try:
                target(live, job)
            except Exception as exc:
                self._fail(live, exc, None)
            finally:
                with live.lock:
                    live.job = None

        job.thread = threading.Thread(
            target=run, name=f'resolve-{live.record.attach_id[:8]}'
        )
        job.thread.daemon = True
        with live.lock:
            live.job = job
            job.thread.start()

    def _resolve(self, live: mirrors.Live, job: Job) -> None:
        if not self._publisher.landed(live, job):
            raise self._interrupted()
        self._publisher.mint(live, job)

    def stop(self, lives: list[mirrors.Live], seconds: float) -> None:
        """End every COMMIT; their frozen blocks are dirty again."""
        until = time.monotonic() + seconds
        threads = []
        for live in lives:
            with live.lock:
                job = live.job
            if job is not None and job.thread is not None:
                job.agent_stops = True
                job.cancelled.set()
                threads.append(job.thread)
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
        self._uploader.stop()
