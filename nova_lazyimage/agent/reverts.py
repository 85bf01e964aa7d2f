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
"""Take a disk back to a version of its blob.

Only what reads by changes: the attach base and the parent become that
version, under a new, empty delta with files of its own. No byte moves, and
nothing is published: the blob's head stays, its number is what the next
COMMIT's publish compares, and the next version is built on the one reverted
to. The disk keeps its size; what the version does not have is zeros.

A disk that somebody has open is refused. That is a courtesy, for the agent
does not know of files that were opened before it took a session over: the
file is another one afterwards, and who has the old one open gets errors, never
bytes of both.

============================== ===============================================
killed                         found by the next agent
============================== ===============================================
before the journal's new turn  the disk as it was; the new turn's files go
after it                       the version; the old turn's files go
============================== ===============================================
"""

import time
from typing import Any

from oslo_log import log as logging

from nova_lazyimage.agent import attachments
from nova_lazyimage.agent import errors
from nova_lazyimage.agent import journal
from nova_lazyimage.agent import mirrors
from nova_lazyimage.agent import repositories

LOG = logging.getLogger(__name__)

CLOSE_SECONDS_MAX = 1.0
CLOSE_PAUSE_SECONDS = 0.02


class Reverts:
    """Reverts of this host's disks."""

    def __init__(
        self,
        attached: attachments.Attachments,
        book: journal.Journal,
        engine: Any,
        repository: repositories.Connection,
    ) -> None:
        self._attached = attached
        self._journal = book
        self._engine = engine
        self._repository = repository

    def revert(self, key: mirrors.Key, version: int) -> mirrors.Live:
        """Drop what was written since; the disk is that version again.

        :raises NotFound: its blob has no such version (any more)
        :raises Conflict: the disk is open, or a COMMIT of it is under way
        :raises CatalogUnavailable: try again
        """
        with self._attached.table.hold(key):
            live = self._attached.table.need(key)
            self._wait_until_closed(live)
            with live.lock:
                self._check(live)
            record = live.record
            repository = self._repository.verified()
            catalog = repository.catalog
            found = catalog.version(record.blob_id, version)
            blob = catalog.get(record.blob_id)
            manifest = repository.manifest(found.root, blob.scope)
            with self._attached.keeping(found.root):
                self._attached.files.save_manifest(found.root, manifest)
                self._switch(live, found, manifest)
        LOG.info(
            'Reverted disk %s of server %s to version %d of blob %s',
            record.disk,
            record.instance,
            version,
            record.blob_id,
        )
        return live

    @staticmethod
    def _wait_until_closed(live: mirrors.Live) -> None:
        """The kernel tells of a close a moment after it."""
        until = time.monotonic() + CLOSE_SECONDS_MAX
        while live.serving().is_open and time.monotonic() < until:
            time.sleep(CLOSE_PAUSE_SECONDS)

    @staticmethod
    def _check(live: mirrors.Live) -> None:
        record = live.record
        name = f'disk "{record.disk}" of server "{record.instance}"'
        if record.state is not journal.State.ATTACHED:
            raise errors.Conflict('this disk is being released')
        if record.commit is not None or live.job is not None:
            raise errors.Conflict(
                f'a commit of {name} is under way; wait for it'
            )
        if live.freeze is not None and live.freeze.held.is_held:
            raise errors.Conflict(f'{name} is frozen; thaw it')
        if live.serving().is_open:
            raise errors.Conflict(f'{name} is open; stop what uses it')

    def _switch(self, live: mirrors.Live, found: Any, manifest: Any) -> None:
        files = self._attached.files
        record = live.record
        # Nobody commits, freezes or grows it meanwhile: all of that needs
        # the lock. What is held for longer than a moment is local.
        with live.lock:
            self._check(live)
            old = live.mirror
            live.mirror, live.broken = None, 'it is being reverted'
            try:
                self._engine.detach(*record.key)
            except OSError as exc:
                LOG.warning(
                    'Disk %s of server %s, to be reverted, was given up '
                    'after an error: %s',
                    record.disk,
                    record.instance,
                    exc,
                )
            del old
            before = (
                record.turn,
                record.base,
                record.parent,
                record.head,
                record.base_size_bytes,
            )
            parent = record.parent
            assert parent is not None  # noqa: S101
            point = journal.Point(found.number, found.root)
            record.turn += 1
            record.head = record.head or parent.version
            record.base = record.parent = point
            record.base_size_bytes = found.size_bytes
            exported = False
            try:
                # Of a revert that a crash cut short.
                files.remove_turn(record.files_id)
                mirror = self._attached.export(record, manifest, create=True)
                exported = True
                self._journal.save(record)
            except BaseException:
                if exported:
                    self._engine.detach(*record.key)
                (
                    record.turn,
                    record.base,
                    record.parent,
                    record.head,
                    record.base_size_bytes,
                ) = before
                self._serve_again(live)
                raise
            live.mirror, live.broken, live.freeze = mirror, '', None
        try:
            files.remove_other_turns(record)
        except OSError as exc:
            LOG.warning(
                'Could not remove what a revert of attachment %s left; '
                'tried again at the next start: %s',
                record.attach_id,
                exc,
            )

    def _serve_again(self, live: mirrors.Live) -> None:
        """After a revert that failed: the disk as it was."""
        files, record = self._attached.files, live.record
        try:
            # What failed may have been written all the same.
            self._journal.save(record)
            files.remove_other_turns(record)
            assert record.base is not None  # noqa: S101
            manifest = files.manifest(record.base.root)
            live.mirror = self._attached.export(record, manifest, create=False)
            live.broken = ''
        except Exception as exc:
            live.broken = str(exc) or type(exc).__name__
            LOG.exception(
                'Cannot export disk %s of server %s again after a revert '
                'that failed; it stays refused until the agent is restarted',
                record.disk,
                record.instance,
            )
