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
"""A server's lazy disks, as the agent of this host serves them.

Every call that nova-compute makes of the agent passes here: the agent's
errors become Nova's, and what an agent that restarts would answer in a moment
is asked again until ``[lazyimage] agent_timeout_seconds`` is over. What ends
something (:func:`end_misses`, :func:`release_all`) is asked once: a server
must be stoppable and deletable while the agent is away.
"""

import contextlib
import os
import time
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any
from typing import TypeVar

import nova.conf
from nova.i18n import _
from oslo_log import log as logging

from nova_lazyimage import exceptions
from nova_lazyimage import marker
from nova_lazyimage.agent import client

CONF = nova.conf.CONF
LOG = logging.getLogger(__name__)

RETRY_SECONDS = 0.5
# What must not hold up a stop for long.
SHORT_SECONDS = 10
AWAY = (client.AgentUnavailable, client.RepositoryUnavailable)

T = TypeVar('T')


def path_of(instance_uuid: str, disk: str) -> str:
    """What the hypervisor opens."""
    return os.path.join(CONF.lazyimage.mount_root, instance_uuid, disk)


def parse_path(path: str | None) -> tuple[str, str] | None:
    """Server and disk of a path below the mount, or nothing."""
    if not path:
        return None
    root = os.path.normpath(CONF.lazyimage.mount_root) + os.sep
    if not path.startswith(root):
        return None
    parts = path[len(root) :].split(os.sep)
    if len(parts) != 2 or not all(parts):
        return None
    return parts[0], parts[1]


def agent(timeout_seconds: float | None = None) -> client.AgentClient:
    """The agent of this host."""
    return client.AgentClient(
        CONF.lazyimage.agent_socket,
        timeout_seconds or CONF.lazyimage.agent_timeout_seconds,
    )


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """The agent's errors as Nova's.

    :raises AgentAway: it does not answer, or catalog or store are away
    :raises AgentRefused: it said no
    """
    try:
        yield
    except AWAY as exc:
        raise exceptions.AgentAway(reason=str(exc)) from exc
    except client.AgentError as exc:
        raise exceptions.AgentRefused(reason=str(exc)) from exc


def patiently(call: Callable[[], T]) -> T:
    """A call that may be repeated: an agent that restarts is waited for."""
    until = time.monotonic() + CONF.lazyimage.agent_timeout_seconds
    while True:
        try:
            return call()
        except AWAY:
            if time.monotonic() + RETRY_SECONDS >= until:
                raise
            time.sleep(RETRY_SECONDS)


def get(instance_uuid: str, disk: str) -> dict[str, Any] | None:
    """The mirror, or nothing."""
    with translated():
        try:
            return patiently(lambda: agent().mirror(instance_uuid, disk))
        except client.NotFound:
            return None


def need(instance_uuid: str, disk: str) -> dict[str, Any]:
    """The mirror of a disk that a server has.

    :raises DiskNotServed: the agent knows nothing of it, or cannot serve it
    """
    mirror = get(instance_uuid, disk)
    if mirror is None:
        raise exceptions.DiskNotServed(
            disk=disk,
            instance_uuid=instance_uuid,
            reason=_(
                'the agent of this host has no record of it; bring back '
                "the agent's state directory, or rebuild the server"
            ),
        )
    if mirror.get('state') == 'broken':
        raise exceptions.DiskNotServed(
            disk=disk,
            instance_uuid=instance_uuid,
            reason=_("the agent cannot serve it: %s; see the agent's log")
            % (mirror.get('error') or mirror.get('broken') or 'broken'),
        )
    return mirror


def attach_clone(
    instance_uuid: str, disk: str, blob: str, project_id: str
) -> dict[str, Any]:
    """A new disk that is a clone of an image's newest version.

    What an earlier life of the disk left is released first: an attachment
    that is repeated would be answered with its old content.

    :raises ImageNotLazy: the repository does not hold the image
    """
    with translated():
        patiently(lambda: agent().release(instance_uuid, disk))
        try:
            return patiently(
                lambda: agent().attach(
                    instance_uuid,
                    disk,
                    clone_blob=blob,
                    project_id=project_id,
                )
            )
        except client.NotFound as exc:
            raise exceptions.ImageNotLazy(
                image_id=blob,
                reason=_(
                    "Glance says that it is kept as a blob, and this host's "
                    'repository does not know it: %s'
                )
                % exc,
            ) from exc


def grow(instance_uuid: str, disk: str, size_bytes: int) -> None:
    """Make it larger; a repetition is harmless."""
    with translated():
        patiently(lambda: agent().grow(instance_uuid, disk, size_bytes))


def head(instance_uuid: str, disk: str, length_bytes: int) -> bytes:
    """Its first bytes: Nova never opens a lazy file (contract 35)."""
    with translated():
        return patiently(
            lambda: agent().head(instance_uuid, disk, length_bytes)
        )


def allow_misses(instance_uuid: str, disk: str) -> None:
    """Let it fetch, before QEMU starts."""
    with translated():
        patiently(lambda: agent().allow_misses(instance_uuid, disk))


def end_misses(instance: Any, disk: str) -> None:
    """End its reads that wait, or a QEMU that waits cannot be killed.

    Never raises: with the agent away nobody can do it.
    """
    try:
        agent(_short()).end_misses(instance.uuid, disk)
    except client.NotFound:
        pass
    except client.AgentError as exc:
        LOG.warning(
            'Cannot end the waiting reads of disk %(disk)s before its server '
            'is stopped: %(error)s',
            {'disk': disk, 'error': exc},
            instance=instance,
        )


def release(instance_uuid: str, disk: str) -> None:
    """Give up one disk; repeating is harmless."""
    with translated():
        agent().release(instance_uuid, disk)


def release_all(instance: Any) -> None:
    """Give up every disk of a server that is being deleted.

    With the agent away a tombstone is left, which the agent reconciles; with
    neither, a server that has lazy disks is not deleted, so that deleting it
    can be repeated.

    :raises AgentAway: neither agent nor tombstone
    """
    try:
        lazy = bool(marker.read(instance))
    except exceptions.MarkerDamaged:
        lazy = True
    try:
        agent().release_all(instance.uuid)
    except client.AgentError as exc:
        try:
            _leave_tombstone(instance.uuid)
        except OSError as error:
            if lazy:
                raise exceptions.AgentAway(
                    reason=_(
                        '%(agent)s; nor can a tombstone be left: %(error)s; '
                        'correct [lazyimage] released_directory'
                    )
                    % {'agent': exc, 'error': error}
                ) from exc
            LOG.debug(
                'Neither agent nor tombstone for a server without lazy '
                'disks: %s',
                error,
                instance=instance,
            )
        else:
            LOG.warning(
                'Left a tombstone for the disks of a deleted server: '
                '%(error)s',
                {'error': exc},
                instance=instance,
            )
    else:
        _remove_tombstone(instance.uuid)
    marker.remove(instance)


def settle_tombstone(instance: Any) -> None:
    """Before a server gets a disk: what was deleted earlier goes first."""
    if not os.path.exists(_tombstone(instance.uuid)):
        return
    if not marker.read(instance):
        with translated():
            patiently(lambda: agent().release_all(instance.uuid))
    _remove_tombstone(instance.uuid)


def _short() -> float:
    return min(SHORT_SECONDS, CONF.lazyimage.agent_timeout_seconds)


def _tombstone(instance_uuid: str) -> str:
    return os.path.join(CONF.lazyimage.released_directory, instance_uuid)


def _leave_tombstone(instance_uuid: str) -> None:
    path = _tombstone(instance_uuid)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    marker.sync_folder(os.path.dirname(path))


def _remove_tombstone(instance_uuid: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_tombstone(instance_uuid))
