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
"""The last steps of a COMMIT: publish, know whether it landed, mint.

Contract 21: a publish names epoch, parent and commit id; whoever does not
know its outcome raises the epoch first and asks afterwards, so that a message
that lay in a queue can no longer move the head back.
"""

import time
from collections.abc import Callable
from typing import Any

from oslo_log import log as logging

from lazyblob import exceptions
from lazyblob.catalog import api
from nova_lazyimage.agent import journal
from nova_lazyimage.agent import mirrors

LOG = logging.getLogger(__name__)

PAUSE_SECONDS_MIN = 0.2
PAUSE_SECONDS_MAX = 10.0
PUBLISHES_MAX = 3


class Unknown(Exception):
    """This agent ends before it knows the outcome; its successor asks."""


class NotSealed:
    """Stands for a sealed mirror after a restart: nothing is frozen."""

    def publish(self) -> None:
        """Nothing."""

    def abandon(self) -> None:
        """Nothing."""


def is_refusal(exc: Exception) -> bool:
    """Whether the catalog says that it did not publish.

    Anything else, a fault of ours included, leaves the outcome open.
    """
    return isinstance(exc, exceptions.LazyBlobError) and not isinstance(
        exc, exceptions.CatalogUnavailable
    )


class Publisher:
    """Publishes the COMMITs of this host."""

    def __init__(
        self, book: journal.Journal, repository: Callable[[], Any]
    ) -> None:
        self._journal = book
        self._repository = repository

    def publish(self, job: Any, root: str, target: Any) -> None:
        """Make the version; returns when the journal names it the parent.

        :param target: the finished :class:`lazyblob.commit.Commit`
        """
        live = job.live
        record = live.record
        with live.lock:
            commit = record.commit
            commit.root = root
            commit.stage = journal.Stage.PUBLISHING
            if commit.image_id:
                self._journal.save_image(
                    journal.Image(commit.image_id, time.time())
                )
            self._journal.save(record)
        for attempt in range(PUBLISHES_MAX):
            try:
                version = self._call(record, target)
            except Exception as exc:
                if is_refusal(exc):
                    raise
                LOG.warning(
                    'The outcome of commit %s is unknown: %s',
                    commit.commit_id,
                    exc,
                )
                if self.landed(live, job):
                    return
                if attempt == PUBLISHES_MAX - 1:
                    raise
            else:
                self._stands(live, version, job)
                return

    @staticmethod
    def _call(record: journal.Record, target: Any) -> api.Version:
        commit, parent, base = record.commit, record.parent, record.base
        assert commit and parent and base  # noqa: S101
        head = record.head or parent.version
        image = None
        if commit.image_id:
            image = api.NewImage(
                commit.image_id, commit.project_id, commit.name
            )
        found: api.Version = target.publish(
            record.blob_id,
            epoch=record.epoch,
            parent=head,
            commit_id=commit.commit_id,
            root=commit.root,
            size_bytes=commit.size_bytes,
            secret=record.secret,
            image=image,
            # The attach base is read as long as the mirror lives, and a
            # blob that somebody named keeps its history.
            drop_parent=bool(record.clone) and head != base.version,
        )
        return found

    def landed(self, live: mirrors.Live, job: Any) -> bool:
        """Whether the publish under way landed; waits for the catalog.

        :raises Unknown: the agent stops, or the disk is released, meanwhile
        """
        record = live.record
        commit = record.commit
        assert commit is not None  # noqa: S101
        pause_seconds = PAUSE_SECONDS_MIN
        while True:
            if job.cancelled.wait(pause_seconds):
                raise Unknown(
                    f'nobody knows yet whether commit {commit.commit_id} '
                    'was published; the catalog is asked at the next start'
                )
            pause_seconds = min(2 * pause_seconds, PAUSE_SECONDS_MAX)
            try:
                catalog = self._repository().catalog
                epoch = catalog.claim(record.blob_id, record.secret)
                with live.lock:
                    record.epoch = epoch
                    self._journal.save(record)
                version = catalog.find_commit(record.blob_id, commit.commit_id)
                break
            except exceptions.CatalogUnavailable as exc:
                LOG.debug('The catalog is still away: %s', exc)
        if version is None:
            return False
        self._stands(live, version, job)
        return True

    def _stands(
        self, live: mirrors.Live, version: api.Version, job: Any
    ) -> None:
        """The journal names the new parent, then the frozen bits go.

        With no room for the journal it waits for some: the version stands,
        and nobody may say otherwise.

        :raises Unknown: the agent stops meanwhile
        """
        while True:
            with live.lock:
                if self._noted(live.record, version, job):
                    job.sealed.publish()
                    return
            if job.cancelled.wait(PAUSE_SECONDS_MAX):
                raise Unknown(
                    f'version {version.number} of blob {version.blob_id} was '
                    'published, and there is no room to note it; the next '
                    'start does'
                )

    def _noted(
        self, record: journal.Record, version: api.Version, job: Any
    ) -> bool:
        before = record.commit, record.parent, record.head, record.results
        commit = record.commit
        assert commit is not None  # noqa: S101
        record.parent = journal.Point(version.number, version.root)
        record.head = 0
        record.add_result(
            journal.Result(
                commit_id=commit.commit_id,
                state='published',
                blob_id=record.blob_id,
                version=version.number,
                root=version.root,
                image_id=commit.image_id,
                total_bytes=commit.total_bytes,
                committed_bytes=job.committed_bytes or commit.total_bytes,
                statistics=job.statistics,
            )
        )
        record.commit = None
        try:
            self._journal.save(record)
        except OSError as exc:
            (
                record.commit,
                record.parent,
                record.head,
                record.results,
            ) = before
            LOG.error(
                'Cannot note that a commit of disk %s of server %s was '
                'published; tried again: %s',
                record.disk,
                record.instance,
                exc,
            )
            return False
        return True

    def mint(self, live: mirrors.Live, job: Any) -> None:
        """Have the image's location made, and tell the client of it."""
        record = live.record
        with live.lock:
            result = record.results[-1]
        if not result.image_id:
            return
        pause_seconds = PAUSE_SECONDS_MIN
        while True:
            try:
                location = self._repository().catalog.mint_location(
                    result.image_id, 1
                )
                break
            except exceptions.CatalogUnavailable as exc:
                LOG.debug('The location cannot be minted yet: %s', exc)
            if job.cancelled.wait(pause_seconds):
                return
            pause_seconds = min(2 * pause_seconds, PAUSE_SECONDS_MAX)
        with live.lock:
            result.location = location
            self._journal.save(record)
