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
"""What the agent needs of its host: mount first, then be nobody special.

Started as root it makes its folders, mounts, and becomes its own user for
good: setresuid reaches every thread, the engine's among them (contract 35).
Started as anybody else, a developer, it stays who it is and fusermount3
mounts.
"""

import contextlib
import ctypes
import grp
import os
import pwd
from collections.abc import Iterator

from oslo_log import log as logging

from lazyblob import exceptions
from nova_lazyimage.agent import state

LOG = logging.getLogger(__name__)

PR_SET_IO_FLUSHER = 57
MNT_FORCE, UMOUNT_NOFOLLOW = 1, 8


class User:
    """Whom the agent becomes.

    :param name: [agent] user; '' or not started as root: who it is
    :raises InvalidConfiguration: no such user
    """

    def __init__(self, name: str) -> None:
        self.changes = bool(name) and os.geteuid() == 0 and name != 'root'
        self.uid, self.gid = os.geteuid(), os.getegid()
        self._name = name
        if not self.changes:
            return
        try:
            entry = pwd.getpwnam(name)
        except KeyError as exc:
            raise exceptions.InvalidConfiguration(
                f'user "{name}" does not exist; create it, or correct '
                '[agent] user'
            ) from exc
        self.uid, self.gid = entry.pw_uid, entry.pw_gid

    @contextlib.contextmanager
    def in_effect(self) -> Iterator[None]:
        """For a moment: what is opened or made is the user's."""
        if not self.changes:
            yield
            return
        groups = os.getgroups()
        os.initgroups(self._name, self.gid)
        os.setegid(self.gid)
        os.seteuid(self.uid)
        try:
            yield
        finally:
            os.seteuid(0)
            os.setegid(0)
            os.setgroups(groups)

    def become(self) -> None:
        """For good."""
        if not self.changes:
            return
        os.initgroups(self._name, self.gid)
        os.setresgid(self.gid, self.gid, self.gid)
        os.setresuid(self.uid, self.uid, self.uid)
        self.changes = False
        LOG.info('Serving as user %s', self._name)


def group_id(name: str) -> int | None:
    """Of the group that may use the socket.

    :raises InvalidConfiguration: no such group
    """
    if not name:
        return None
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError as exc:
        raise exceptions.InvalidConfiguration(
            f'group "{name}" does not exist; create it, or correct [agent] '
            'socket_group'
        ) from exc


def prepare(folders: state.Folders, user: User, gid: int | None) -> None:
    """Let folders belong to whom they should; nobody else uses them now."""
    if user.changes:
        for folder in (
            folders.state,
            folders.run,
            folders.mirrors,
            folders.cache,
            folders.journal,
            folders.images,
            folders.manifests,
            folders.released,
            folders.live,
        ):
            os.chown(folder, user.uid, user.gid)
    if gid is None:
        os.chmod(folders.released, 0o700)
    else:
        give(str(folders.released), gid)
        os.chmod(folders.released, 0o2770)  # noqa: S103


def give(path: str, gid: int) -> None:
    """Let a group have a file.

    :raises InvalidConfiguration: only root, or a member, may do that
    """
    try:
        os.chown(path, -1, gid)
    except PermissionError as exc:
        raise exceptions.InvalidConfiguration(
            f'could not give "{path}" to group {gid} of [agent] socket_group: '
            'start the agent as root, or add its user to that group'
        ) from exc


def become_io_flusher() -> None:
    """Reclaim must not wait for our own mount (contract 42)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0):
        LOG.debug('Not an I/O flusher: %s', os.strerror(ctypes.get_errno()))


def abort_mount(path: str) -> None:
    """End the connection of a FUSE mount; nothing without the privilege.

    Whoever holds no such privilege ends it by closing all descriptors.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(path), MNT_FORCE | UMOUNT_NOFOLLOW):
        LOG.debug('"%s": %s', path, os.strerror(ctypes.get_errno()))


def boot_id() -> str:
    """The kernel's, of this boot."""
    with open('/proc/sys/kernel/random/boot_id') as file:
        return file.read().strip()
