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
"""The folders of one agent, and files that are replaced as a whole.

A file written here is there as it was before or as it is now, whatever
happens in between: written beside its place, synced, renamed, and its folder
synced. One agent owns its state directory, run directory, socket and mount
root: locks that the kernel drops with the process keep a second one out
(contract 15).
"""

import contextlib
import dataclasses
import errno
import fcntl
import logging
import os
import pathlib
import re
import tempfile
import time
from collections.abc import Callable

LOG = logging.getLogger(__name__)

LOCK_PATIENCE_SECONDS = 3.0
# Guests may wait meanwhile.
LOCK_PAUSE_SECONDS = 0.005
# Of files that are being written; each is renamed or removed.
PREFIX = '.new-'
UUID = re.compile(
    r'[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}'
)


class Locked(Exception):
    """Another agent owns what this one was told to use."""


@dataclasses.dataclass(frozen=True)
class Folders:
    """Where things are below the state and run directories."""

    state: pathlib.Path
    run: pathlib.Path
    mount_root: pathlib.Path
    cache_directory: str = ''

    @property
    def mirrors(self) -> pathlib.Path:
        """Deltas and disk maps, one folder an attachment."""
        return self.state / 'mirrors'

    @property
    def cache(self) -> pathlib.Path:
        """The chunk cache."""
        if self.cache_directory:
            return pathlib.Path(self.cache_directory)
        return self.state / 'cache'

    @property
    def journal(self) -> pathlib.Path:
        """Attachments and images, and the lock."""
        return self.state / 'journal'

    @property
    def images(self) -> pathlib.Path:
        """Notes of the image blobs that this host made."""
        return self.journal / 'images'

    @property
    def manifests(self) -> pathlib.Path:
        """Copies of the manifests that mirrors read by."""
        return self.state / 'manifests'

    @property
    def released(self) -> pathlib.Path:
        """Tombstones, written by nova-compute."""
        return self.state / 'released'

    @property
    def live(self) -> pathlib.Path:
        """Live maps."""
        return self.run / 'live'

    def make(self) -> None:
        """Make what is missing; nobody else may read it."""
        for folder in (
            self.mirrors,
            self.cache,
            self.journal,
            self.images,
            self.manifests,
            self.live,
        ):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (self.released, self.mount_root):
            # A mount left over by a dead agent answers nothing but errors.
            with contextlib.suppress(FileExistsError):
                folder.mkdir(mode=0o755, parents=True)

    def tombstoned(self) -> list[str]:
        """The servers that were deleted while the agent was away."""
        try:
            names = os.listdir(self.released)
        except FileNotFoundError:
            return []
        return sorted(name for name in names if UUID.fullmatch(name))

    def sweep(self) -> None:
        """Remove what a writer that was killed had begun to write."""
        for folder in (self.journal, self.images, self.manifests):
            for path in folder.glob(f'{PREFIX}*'):
                path.unlink(missing_ok=True)


class Lock:
    """A place that one agent at a time owns, as long as it lives.

    :param path: the lock's file
    :param what: the place and its option, as a refusal names them
    """

    def __init__(self, path: pathlib.Path, what: str) -> None:
        self.path = path
        self._what = what
        self._descriptor: int | None = None

    def acquire(
        self,
        patience_seconds: float = LOCK_PATIENCE_SECONDS,
        check: Callable[[], None] = lambda: None,
        owner: tuple[int, int] = (-1, -1),
    ) -> None:
        """Own the place, or say who does.

        A predecessor that was just killed may take a moment to be gone.

        :param check: called now and then; raises if waiting is of no use
        :param owner: of the file: whom the agent becomes
        :raises Locked: another process owns it
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self.path, flags, 0o600)
        until = time.monotonic() + patience_seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                check()
                if time.monotonic() < until:
                    time.sleep(LOCK_PAUSE_SECONDS)
                    continue
                holder = os.pread(descriptor, 32, 0).decode().strip()
                os.close(descriptor)
                raise Locked(
                    f'{self._what} belongs to the agent with pid '
                    f'{holder or "unknown"}; stop that one, or give this one '
                    'another'
                ) from None
        os.fchown(descriptor, *owner)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f'{os.getpid()}\n'.encode(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        """Let another agent have it (the process's end does as well)."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class Claims:
    """All that one agent at a time may use, each with its lock.

    The state directory's is taken first and let go of last: whoever has it
    is the one successor of its predecessor, which has none of the others any
    more (contract 16). The chunk cache and every disk have fences in the
    engine.

    :param socket: path of the control socket
    """

    def __init__(self, folders: Folders, socket: str) -> None:
        self._state = Lock(
            folders.journal / 'lock',
            f'the state directory "{folders.state}" ([agent] '
            'state_directory, or --state)',
        )
        self._others = [
            Lock(
                folders.run / 'lock', f'[agent] run_directory "{folders.run}"'
            ),
            Lock(pathlib.Path(f'{socket}.lock'), f'[agent] socket "{socket}"'),
        ]
        root = folders.mount_root
        # Not in it: it may be mounted, and wait for ourselves.
        self._mount_root = Lock(
            root.with_name(f'{root.name}.lock'), f'[agent] mount_root "{root}"'
        )

    def acquire(
        self,
        patience_seconds: float,
        check: Callable[[], None],
        owner: tuple[int, int],
    ) -> None:
        """Own all of it.

        :param patience_seconds: how long the predecessor is waited for
        :raises Locked: another agent owns some of it; nothing was touched
        """
        self._state.acquire(patience_seconds, check, owner)
        for lock in self._others:
            lock.acquire(owner=owner)
        try:
            self._mount_root.acquire(owner=owner)
        except OSError as exc:
            if exc.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            # Who may mount on a folder need not own the one that it is in.
            # Nobody mounts over another agent's mount, lock or not.
            LOG.debug('No lock of the mount root: %s', exc)

    def release(self) -> None:
        """Let a successor have it."""
        for lock in (self._mount_root, *self._others, self._state):
            lock.release()


def sync_folder(folder: pathlib.Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(path: pathlib.Path, data: bytes, mode: int = 0o600) -> None:
    """Write a file as a whole, durably."""
    descriptor, name = tempfile.mkstemp(prefix=PREFIX, dir=path.parent)
    try:
        with open(descriptor, 'wb') as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    sync_folder(path.parent)


def remove(path: pathlib.Path) -> None:
    """Delete a file durably; one that is not there is fine."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    sync_folder(path.parent)
