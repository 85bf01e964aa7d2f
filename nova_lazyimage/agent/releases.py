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
"""Give up disks and what belongs to them, whenever the catalog answers.

Releasing frees the host at once: the journal says *releasing*, the mirror
ends, its files go. The instance's blob goes as soon as the catalog answers,
by this call or by the reconciler. Every step may be repeated.

The blob is deleted with the attachment's secret: if another agent has
claimed it since, the catalog refuses, and the blob is that agent's: ownership
decides, not the caller's hint.

Tombstones: nova-compute leaves ``released/<instance uuid>`` when it deletes a
server while the agent is away (contract 37). Their content is never read. An
attach settles the server's tombstone first, so that an old one cannot take a
new disk along.
"""

import stat
import threading
import time
from collections.abc import Callable
from typing import Any

from oslo_log import log as logging

from lazyblob import exceptions
from lazyblob.catalog import api
from nova_lazyimage.agent import attachments
from nova_lazyimage.agent import commits
from nova_lazyimage.agent import errors
from nova_lazyimage.agent import journal
from nova_lazyimage.agent import mirrors
from nova_lazyimage.agent import state

LOG = logging.getLogger(__name__)

PERIOD_SECONDS = 10.0
IMAGE_PERIOD_SECONDS = 600.0
IMAGE_SECONDS_MAX = 7 * 24 * 3600.0


class Releases:
    """What goes away."""

    def __init__(
        self,
        attached: attachments.Attachments,
        uploads: commits.Commits,
        book: journal.Journal,
        engine: Any,
        repository: Callable[[], Any],
        folders: state.Folders,
    ) -> None:
        self._attached = attached
        self._commits = uploads
        self._journal = book
        self._engine = engine
        self._repository = repository
        self._folders = folders
        self._blob_mutex = threading.Lock()
        # A tombstone is read, obeyed and removed by one thread at a time:
        # else the reconciler, having seen it, could release the new disk of
        # an attach that has settled it meanwhile.
        self._tombstone_mutex = threading.Lock()
        self._wake = threading.Event()
        self._images_due = 0.0

    def release(self, key: mirrors.Key, *, keep_blob: bool = False) -> None:
        """Give up one mirror; nothing attached there is fine."""
        with self._attached.table.hold(key):
            live = self._attached.table.get(key)
            if live is None:
                return
            record = live.record
            with live.lock:
                record.keep_blob = keep_blob
                record.state = journal.State.RELEASING
                self._journal.save(record)
            self._commits.cancel(live)
            self._attached.table.remove(key)
            if live.mirror is not None:
                try:
                    self._engine.detach(*key)
                except OSError as exc:
                    LOG.warning(
                        'Disk %s of server %s was given up after an error: %s',
                        record.disk,
                        record.instance,
                        exc,
                    )
            LOG.info(
                'Released disk %s of server %s (attachment %s, blob %s)',
                record.disk,
                record.instance,
                record.attach_id,
                record.blob_id,
            )
        self._finish(record)

    def release_instance(
        self, instance: str, *, keep_blob: bool = False
    ) -> None:
        """Every disk of a server; none is fine."""
        for live in self._attached.table.of_instance(instance):
            self.release(live.record.key, keep_blob=keep_blob)

    def drop_image(self, image_id: str) -> None:
        """Drop an image blob that a COMMIT of this host published.

        :raises Forbidden: no COMMIT of this host made it
        :raises Conflict: Glance has read it
        """
        catalog = self._repository().catalog
        try:
            blob = catalog.get(image_id)
        except exceptions.NotFound:
            self._journal.forget_image(image_id)
            return
        image = self._journal.image(image_id)
        if image is None:
            raise exceptions.Forbidden(
                f'image blob "{image_id}" was not made by this agent; delete '
                'the image in Glance'
            )
        if blob.state is not api.State.PROVISIONAL:
            raise errors.Conflict(
                f'image blob "{image_id}" is {blob.state.value}; delete the '
                'image in Glance'
            )
        try:
            catalog.delete(image_id)
        except exceptions.NotFound:
            LOG.debug('Image blob %s was gone already', image_id)
        self._journal.forget_image(image_id)
        LOG.info('Dropped image blob %s', image_id)

    # Tombstones

    def settle(self, instance: str) -> None:
        """Do what a server's tombstone says, and remove it."""
        path = self._folders.released / instance
        with self._tombstone_mutex:
            try:
                if not stat.S_ISREG(path.lstat().st_mode):
                    return
            except FileNotFoundError:
                return
            LOG.info(
                'Server %s was deleted while this agent was away', instance
            )
            self.release_instance(instance)
            path.unlink(missing_ok=True)

    # The reconciler

    def run(self, stopping: threading.Event) -> None:
        """Finish what was left, until told to stop."""
        while not stopping.is_set():
            try:
                self.reconcile()
            except Exception:
                LOG.exception('Reconciling failed; tried again')
            self._wake.wait(PERIOD_SECONDS)
            self._wake.clear()

    def wake(self) -> None:
        """Reconcile now (or look whether to stop)."""
        self._wake.set()

    def reconcile(self) -> None:
        """Tombstones, half-done attaches and releases, forgotten images."""
        for instance in self._folders.tombstoned():
            self.settle(instance)
        for record in self._attached.records():
            if record.state is journal.State.RELEASING:
                self._finish(record)
        if time.monotonic() >= self._images_due:
            self._images_due = time.monotonic() + IMAGE_PERIOD_SECONDS
            self._forget_images()

    def _forget_images(self) -> None:
        """Those that Glance has read, that are gone, that nobody wants."""
        now = time.time()
        for image in self._journal.images():
            age_seconds = now - image.created
            if age_seconds < IMAGE_PERIOD_SECONDS:
                continue
            try:
                blob = self._repository().catalog.get(image.image_id)
            except exceptions.NotFound:
                blob = None
            except exceptions.LazyBlobError as exc:
                LOG.debug('Images are looked after later: %s', exc)
                return
            waits = blob and blob.state is api.State.PROVISIONAL
            if not waits or age_seconds > IMAGE_SECONDS_MAX:
                self._journal.forget_image(image.image_id)

    def _finish(self, record: journal.Record) -> None:
        """Delete files and blob; what fails is tried again later."""
        try:
            self._attached.files.remove(record.attach_id)
            with self._blob_mutex:
                if record.clone and not record.keep_blob:
                    self._delete_blob(record)
                else:
                    self._give_back(record)
                self._attached.forget(record)
        except exceptions.LazyBlobError as exc:
            LOG.warning(
                'Cannot delete blob %s of a released disk yet: %s',
                record.blob_id,
                exc,
            )
        except OSError as exc:
            LOG.warning(
                'Cannot remove what attachment %s left yet: %s',
                record.attach_id,
                exc,
            )

    def _delete_blob(self, record: journal.Record) -> None:
        catalog = self._repository().catalog
        try:
            if not record.epoch:
                # The attach ended before it had claimed the clone, or
                # before it knew: the id is nobody else's.
                catalog.claim(record.blob_id, record.secret)
            catalog.delete(record.blob_id, secret=record.secret)
        except exceptions.NotFound:
            LOG.debug('Blob %s is gone already', record.blob_id)
        except exceptions.Forbidden:
            LOG.warning(
                'Blob %s stays: another agent has claimed it',
                record.blob_id,
            )

    def _give_back(self, record: journal.Record) -> None:
        """Nobody writes to this blob any more: whoever may, deletes it."""
        if not record.epoch:
            return
        catalog = self._repository().catalog
        try:
            if catalog.get(record.blob_id).epoch == record.epoch:
                catalog.claim(record.blob_id, '')
        except exceptions.NotFound:
            LOG.debug('Blob %s is gone already', record.blob_id)
