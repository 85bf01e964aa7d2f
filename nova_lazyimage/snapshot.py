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
"""CLONE, then COMMIT: a server's disk becomes an image.

The guest is quiesced around the seal only, which takes as long as
writes in flight do; the upload goes on beside the running guest. Glance is
told the location by Nova and attaches it in the background without ever
saying that it failed, so Nova waits until the image is active.

A COMMIT during which the agent died has failed, and what it held is dirty
again: it is repeated once, with its quiesce (contract 17). Nothing else is
repeated.
"""

import contextlib
import time
import urllib.parse
import uuid
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import glanceclient.exc
import nova.conf
from nova.compute import power_state
from nova.compute import utils as compute_utils
from nova import exception
from nova.i18n import _
from nova.image import glance
from oslo_log import log as logging

from nova_lazyimage import disks
from nova_lazyimage import exceptions
from nova_lazyimage import frozen
from nova_lazyimage import marker
from nova_lazyimage.agent import client

CONF = nova.conf.CONF
LOG = logging.getLogger(__name__)

ATTEMPTS = 2
POLL_SECONDS = 0.2
POLL_SECONDS_MAX = 2.0
THAW_ATTEMPTS = 3
SERVER_ERROR = 500
# How long a guest stays frozen for an agent that does not answer.
SEAL_SECONDS = 10
# The code of a COMMIT that an agent which stopped or died did not finish.
INTERRUPTED = 'Interrupted'
# What `openstack server event show` names.
EVENT = 'compute_lazyimage_snapshot'

Quiesced = Callable[[], contextlib.AbstractContextManager[Any]]


class Interrupted(Exception):
    """The agent died during a COMMIT."""


def publish(
    context: Any, instance: Any, disk: str, image_id: str, quiesced: Quiesced
) -> str:
    """COMMIT a disk as the blob of an image; returns its location.

    :raises SnapshotFailed: and the disk is as if nothing had been asked
    """
    image = glance.API().get(context, image_id)
    owner = image.get('owner') or context.project_id
    deadline = time.monotonic() + CONF.lazyimage.snapshot_timeout_seconds
    with disks.translated():
        for attempt in range(1, ATTEMPTS + 1):
            commit = _Commit(instance, disk, image_id, owner, deadline)
            try:
                with quiesced():
                    commit.seal()
                return commit.wait()
            except Interrupted as exc:
                if attempt == ATTEMPTS:
                    raise exceptions.SnapshotFailed(
                        instance_uuid=instance.uuid,
                        reason=_('the agent died twice meanwhile: %s') % exc,
                    ) from exc
                LOG.warning(
                    'The agent died during a snapshot, which is repeated: '
                    '%(error)s',
                    {'error': exc},
                    instance=instance,
                )
    raise AssertionError('unreachable')


def drop(image_id: str, ignore_errors: bool) -> None:
    """Drop the blob of an image that nobody will read.

    The blob of an image that Glance has read already is Glance's to delete.
    """
    try:
        disks.agent().drop_image(image_id)
    except (client.Conflict, client.Forbidden, client.NotFound) as exc:
        # Glance's, or never made.
        LOG.debug('Blob %s is not dropped: %s', image_id, exc)
    except client.AgentError as exc:
        if not ignore_errors:
            raise exceptions.AgentRefused(reason=str(exc)) from exc
        LOG.warning(
            'Cannot drop blob %(image)s of a failed snapshot; it is listed '
            'as abandoned until it is reaped: %(error)s',
            {'image': image_id, 'error': exc},
        )


def blob_of(location: Any) -> str | None:
    """The blob of a location as Nova keeps it (``{'url': ...}``)."""
    if not location:
        return None
    parts = urllib.parse.urlsplit(location['url']).path.split('/')
    return parts[1] if len(parts) > 1 else None


def wait_until_active(context: Any, instance: Any, image_id: str) -> None:
    """Wait for what Glance does after it answered.

    :raises ImageNotFound: the image was deleted meanwhile
    :raises SnapshotFailed: it is not active in time
    """
    timeout_seconds = CONF.lazyimage.image_active_timeout_seconds
    deadline = time.monotonic() + timeout_seconds
    pause_seconds = POLL_SECONDS
    while True:
        try:
            status = glance.API().get(context, image_id).get('status')
        except exception.GlanceConnectionFailed as exc:
            status = str(exc)
        except glanceclient.exc.HTTPException as exc:
            if exc.code < SERVER_ERROR:
                raise
            status = str(exc)
        if status == 'active':
            return
        if status in ('deleted', 'pending_delete'):
            raise exception.ImageNotFound(image_id=image_id)
        if status == 'killed' or time.monotonic() >= deadline:
            raise exceptions.SnapshotFailed(
                instance_uuid=instance.uuid,
                reason=_(
                    'Glance did not make image %(image)s active within '
                    '%(seconds)s s (it is "%(status)s"); see the log of '
                    'glance-api for the location that it refused, or raise '
                    '[lazyimage] image_active_timeout_seconds'
                )
                % {
                    'image': image_id,
                    'seconds': timeout_seconds,
                    'status': status,
                },
            )
        time.sleep(pause_seconds)
        pause_seconds = min(2 * pause_seconds, POLL_SECONDS_MAX)


class _Commit:
    """One attempt."""

    def __init__(
        self,
        instance: Any,
        disk: str,
        image_id: str,
        owner: str,
        deadline: float,
    ) -> None:
        self._instance = instance
        self._disk = disk
        self._image_id = image_id
        self._owner = owner
        self._deadline = deadline
        self._commit_id = str(uuid.uuid4())
        self._away = False

    def seal(self) -> None:
        """Returns when it is SEALED.

        Asked again, with the same id, while the guest is still quiesced: if
        the answer was lost or the agent is starting, the seal lies between
        freeze and thaw all the same.
        """
        until = time.monotonic() + SEAL_SECONDS
        while True:
            try:
                disks.agent(SEAL_SECONDS).commit(
                    self._instance.uuid,
                    self._disk,
                    commit_id=self._commit_id,
                    image_id=self._image_id,
                    # No name: Glance's need not be unique, a blob's must.
                    project_id=self._owner,
                )
                return
            except disks.AWAY:
                if time.monotonic() + POLL_SECONDS >= until:
                    raise
                time.sleep(POLL_SECONDS)

    def wait(self) -> str:
        """Returns the location once it is published."""
        pause_seconds = POLL_SECONDS
        while True:
            state = self._state()
            if state is not None and state['state'] == 'published':
                return str(state['location'])
            if state is not None and state['state'] == 'failed':
                self._fail(state.get('error') or {})
            if time.monotonic() >= self._deadline:
                raise exceptions.SnapshotFailed(
                    instance_uuid=self._instance.uuid,
                    reason=_(
                        'it was not published within %d s; raise [lazyimage] '
                        'snapshot_timeout_seconds'
                    )
                    % CONF.lazyimage.snapshot_timeout_seconds,
                )
            time.sleep(pause_seconds)
            pause_seconds = min(2 * pause_seconds, POLL_SECONDS_MAX)

    def _state(self) -> dict[str, Any] | None:
        try:
            return disks.agent().commit_state(
                self._instance.uuid, self._disk, self._commit_id
            )
        except client.NotFound as exc:
            raise Interrupted(str(exc)) from exc
        except client.RepositoryUnavailable:
            return None
        except client.AgentUnavailable:
            self._away = True
            return None

    def _fail(self, error: Any) -> None:
        if isinstance(error, str):
            error = {'message': error}
        message = error.get('message', 'the commit failed')
        if self._away or error.get('code') == INTERRUPTED:
            raise Interrupted(message)
        raise exceptions.SnapshotFailed(
            instance_uuid=self._instance.uuid, reason=message
        )


class SnapshotMixin:
    """``LibvirtDriver.snapshot`` for lazy disks."""

    def snapshot(
        self: Any,
        context: Any,
        instance: Any,
        image_id: str,
        update_task_state: Any,
    ) -> None:
        """Make an image of a server; returns when it is active."""
        if marker.read(instance) and _moves_across_cells(instance):
            raise exceptions.SnapshotFailed(
                instance_uuid=instance.uuid,
                reason=_(
                    'a server with a lazily mirrored disk cannot be moved '
                    'to another cell yet'
                ),
            )
        with (
            _recorded(context, instance),
            self.image_backend.snapshotting(
                instance, lambda: self._quiesced(context, instance)
            ) as snapshotting,
        ):
            super().snapshot(context, instance, image_id, update_task_state)
            image = snapshotting.image
            if image is None or image.published is None:
                return
            try:
                wait_until_active(context, instance, image_id)
            except Exception:
                image.cleanup_direct_snapshot(
                    {'url': image.published},
                    also_destroy_volume=True,
                    ignore_errors=True,
                )
                raise

    @contextlib.contextmanager
    def _quiesced(self: Any, context: Any, instance: Any) -> Iterator[None]:
        """Freeze the guest's file systems, if they can be."""
        image_meta = instance.image_meta
        required = image_meta.properties.get('os_require_quiesce', False)
        if self.get_info(instance).state == power_state.SHUTDOWN:
            # Nobody writes.
            yield
            return
        asked = confirmed = False
        try:
            try:
                self._can_quiesce(instance, image_meta)
                # From here on it may be frozen, whatever is answered.
                asked = True
                frozen.note(instance)
                self.quiesce(context, instance, image_meta)
                confirmed = True
            except exception.NovaException as exc:
                if required:
                    LOG.error(
                        'The guest cannot be quiesced, and image property '
                        '"os_require_quiesce" is set: %(reason)s',
                        {'reason': exc},
                        instance=instance,
                    )
                    raise
                LOG.info(
                    'The guest is not quiesced: %(reason)s',
                    {'reason': exc},
                    instance=instance,
                )
            yield
        finally:
            if asked:
                self._thaw(context, instance, image_meta, confirmed)

    def _thaw(
        self: Any,
        context: Any,
        instance: Any,
        image_meta: Any,
        confirmed: bool,
    ) -> None:
        for attempt in range(1, THAW_ATTEMPTS + 1):
            try:
                self.unquiesce(context, instance, image_meta)
                frozen.forget(instance)
                return
            except exception.NovaException as exc:
                if attempt < THAW_ATTEMPTS:
                    continue
                # An agent that is not there has frozen nothing.
                if not confirmed:
                    frozen.forget(instance)
                LOG.log(
                    logging.ERROR if confirmed else logging.WARNING,
                    'The guest may still be frozen: %(error)s; thaw it with '
                    '"virsh domfsthaw"',
                    {'error': exc},
                    instance=instance,
                )


@contextlib.contextmanager
def _recorded(context: Any, instance: Any) -> Iterator[None]:
    """Have the action of a lazy server tell how its snapshot ended.

    Nova's own snapshots end outside of what it records: the action has no
    event, and none of its messages says that it failed.
    """
    with contextlib.ExitStack() as stack:
        if marker.read(instance):
            reporter = compute_utils.EventReporter(
                context, EVENT, CONF.host, instance.uuid
            )
            try:
                stack.enter_context(reporter)
            except exception.InstanceActionNotFound as exc:
                LOG.debug('Nobody asked for it: %s', exc, instance=instance)
        yield


def _moves_across_cells(instance: Any) -> bool:
    moving = instance.migration_context
    return bool(moving and moving.is_cross_cell_move())
