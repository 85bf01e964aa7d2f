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
synced. One agent owns a state directory: a lock that the kernel drops with
the process keeps a second one out (contract 15).
"""

import contextlib
import dataclasses
import fcntl
import os
import pathlib
import re
import tempfile
import time
from collections.abc import Callable

LOCK_PATIENCE_SECONDS = 3.0
# Guests may wait meanwhile.
LOCK_PAUSE_SECONDS = 0.005
# Of files that are being written; each is renamed or removed.
PREFIX = '.new-'
UUID = re.compile(
    r'[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}'
)


class Locked(Exception):
    """Another agent owns the state directory."""


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
    """Held as long as the process lives."""

    def __init__(self, folders: Folders) -> None:
        self.path = folders.journal / 'lock'
        self._descriptor: int | None = None

    def acquire(
        self,
        patience_seconds: float = LOCK_PATIENCE_SECONDS,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Own the state directory, or say who does.

        A predecessor that was just killed may take a moment to be gone.

        :param check: called now and then; raises if waiting is of no use
        :raises Locked: another process owns it
        """
        descriptor = os.open(
            self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
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
                    f'the state directory "{self.path.parent.parent}" belongs '
                    f'to the agent with pid {holder or "unknown"}; stop it, '
                    'or give this one a state directory of its own'
                ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f'{os.getpid()}\n'.encode(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        """Let another agent have it (the process's end does as well)."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


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
