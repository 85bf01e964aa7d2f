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
"""One attachment in service, and the table of them all.

A :class:`Live` is a journal's record together with the engine's mirror; its
lock guards both, is held for moments only, and never while the network is
asked. What takes long (attach, release) is serialised for each mirror by
:meth:`Table.hold`, so that one slow catalog answer holds up one disk.
"""

import contextlib
import dataclasses
import pathlib
import shutil
import threading
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

from oslo_log import log as logging

from lazyblob import manifest as manifests
from nova_lazyimage.agent import errors
from nova_lazyimage.agent import journal
from nova_lazyimage.agent import state

LOG = logging.getLogger(__name__)

Key = tuple[str, str]


@dataclasses.dataclass
class Live:
    """An attachment in service.

    :ivar mirror: the engine's; None: it could not be exported, ``broken``
        says why, and nothing else is ever served in its place
    :ivar job: its COMMIT under way
    :ivar freeze: a freeze that is, or was, held: freezes.Freeze
    """

    record: journal.Record
    mirror: Any = None
    broken: str = ''
    job: Any = None
    freeze: Any = None
    lock: threading.RLock = dataclasses.field(default_factory=threading.RLock)

    def serving(self) -> Any:
        """The engine's mirror. :raises Conflict: it is broken"""
        if self.mirror is None:
            raise errors.Conflict(
                f'disk "{self.record.disk}" of server '
                f'"{self.record.instance}" cannot be served: {self.broken}'
            )
        return self.mirror


class Table:
    """Every attachment in service."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._lives: dict[Key, Live] = {}
        self._holds: dict[Key, tuple[threading.RLock, int]] = {}

    @contextlib.contextmanager
    def hold(self, key: Key) -> Iterator[None]:
        """Nobody else attaches or releases this mirror meanwhile."""
        with self._mutex:
            lock, users = self._holds.get(key, (threading.RLock(), 0))
            self._holds[key] = lock, users + 1
        try:
            with lock:
                yield
        finally:
            with self._mutex:
                lock, users = self._holds[key]
                if users == 1:
                    del self._holds[key]
                else:
                    self._holds[key] = lock, users - 1

    def get(self, key: Key) -> Live | None:
        """A mirror, or nothing."""
        with self._mutex:
            return self._lives.get(key)

    def need(self, key: Key) -> Live:
        """A mirror. :raises NoSuchMirror:"""
        live = self.get(key)
        if live is None:
            raise errors.NoSuchMirror(
                f'no disk "{key[1]}" of server "{key[0]}" is attached to '
                'this agent; attach it first'
            )
        return live

    def put(self, live: Live) -> None:
        """It is in service."""
        with self._mutex:
            self._lives[live.record.key] = live

    def remove(self, key: Key) -> Live | None:
        """It is in service no more."""
        with self._mutex:
            return self._lives.pop(key, None)

    def all(self) -> list[Live]:
        """Every one, in order."""
        with self._mutex:
            return [self._lives[key] for key in sorted(self._lives)]

    def of_instance(self, instance: str) -> list[Live]:
        """Those of one server."""
        return [
            live for live in self.all() if live.record.instance == instance
        ]


class Files:
    """The files of attachments: deltas, live maps, manifests."""

    def __init__(self, folders: state.Folders) -> None:
        self._folders = folders
        self._mutex = threading.Lock()

    def mirror(self, files_id: str) -> pathlib.Path:
        """Folder of delta and disk map."""
        return self._folders.mirrors / files_id

    def live_map(self, files_id: str) -> pathlib.Path:
        """The live map's path."""
        return self._folders.live / files_id

    def path(self, key: Key) -> str:
        """What the hypervisor opens."""
        return str(self._folders.mount_root / key[0] / key[1])

    def remove(self, attach_id: str) -> None:
        """Delete what one attachment kept here, in all its turns."""
        for folder in self._folders.mirrors.glob(f'{attach_id}*'):
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(folder)
        for left in self._folders.live.glob(f'{attach_id}*'):
            left.unlink(missing_ok=True)

    def remove_other_turns(self, record: journal.Record) -> None:
        """Delete what an attachment kept before or beside its last revert."""
        for folder in self._folders.mirrors.glob(f'{record.attach_id}*'):
            if folder.name != record.files_id:
                self.remove_turn(folder.name)

    def remove_turn(self, files_id: str) -> None:
        """Delete one turn's files; none is fine."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.mirror(files_id))
        self.live_map(files_id).unlink(missing_ok=True)

    def save_manifest(self, root: str, manifest: manifests.Manifest) -> None:
        """Keep a manifest, so that a restart asks nobody."""
        path = self._folders.manifests / root
        with self._mutex:
            if not path.exists():
                state.replace(path, manifest.dumps())

    def manifest(self, root: str) -> manifests.Manifest | None:
        """A manifest that was kept.

        :raises lazyblob.exceptions.ChunkCorrupt: the file is damaged
        """
        try:
            data = (self._folders.manifests / root).read_bytes()
        except FileNotFoundError:
            return None
        return manifests.Manifest.loads(data)

    def drop_manifests(self, used: Callable[[], set[str]]) -> None:
        """Delete the manifests that nothing reads by any more.

        :param used: the roots that are; asked while none can be saved, so
            name a root there before saving its manifest
        """
        with self._mutex:
            keep = used()
            for path in self._folders.manifests.iterdir():
                if path.name not in keep:
                    path.unlink(missing_ok=True)
