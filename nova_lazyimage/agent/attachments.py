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
"""Attach a disk, serve it again after a restart.

The order of writes (contract 25): journal *attaching*, then the clone, whose
id derives from the attachment, then the writer's claim, the manifest's local
copy, the engine's files, then journal *attached*, then the answer. What dies
in between was answered to nobody and is undone.

A restart asks neither catalog nor store: everything a mirror reads by is in
the journal and in ``manifests/``. A mirror that cannot be exported stays
listed as broken: its server must not start on other bytes (contract 37).
"""

import contextlib
import dataclasses
import errno
import secrets
import threading
import uuid
from collections.abc import Iterator
from typing import Any

from oslo_log import log as logging

from lazyblob.catalog import api
from nova_lazyimage.agent import errors
from nova_lazyimage.agent import journal
from nova_lazyimage.agent import latencies
from nova_lazyimage.agent import mirrors
from nova_lazyimage.agent import repositories
from nova_lazyimage.agent import session

LOG = logging.getLogger(__name__)

HEAD_BYTES_MAX = 1024 * 1024
# Of the requests that wait, so many are told.
WAITS_MAX = 32
# What Nova makes of a new disk; libvirt changes the owner afterwards.
MODE = 0o600


@dataclasses.dataclass(frozen=True)
class Request:
    """What a client asks to attach.

    :ivar clone: a clone of this blob is made; else
    :ivar blob: this blob itself is written
    """

    clone: str = ''
    clone_version: int | None = None
    blob: str = ''
    project_id: str = ''
    size_bytes: int | None = None
    uid: int = 0
    gid: int = 0


class Attachments:
    """The attachments of this host.

    :param repository: connected at the first attach, not before
    """

    def __init__(
        self,
        book: journal.Journal,
        files: mirrors.Files,
        engine: Any,
        repository: repositories.Connection,
    ) -> None:
        self.table = mirrors.Table()
        self.files = files
        self._journal = book
        self._engine = engine
        self._repository = repository
        self._mutex = threading.Lock()
        # Every record, those that are coming and going among them.
        self._records: dict[str, journal.Record] = {}
        self._coming: list[str] = []

    # Records

    def load(self) -> list[journal.Record]:
        """Read the journal, once, at the start."""
        for record in self._journal.load():
            self._records[record.attach_id] = record
        return self.records()

    def records(self) -> list[journal.Record]:
        """Every attachment, whatever its state."""
        with self._mutex:
            return list(self._records.values())

    def forget(self, record: journal.Record) -> None:
        """It is gone, here and in the catalog."""
        self._journal.forget(record)
        with self._mutex:
            self._records.pop(record.attach_id, None)
        if not self._journal.damaged:
            self.files.drop_manifests(self._roots)

    def _save_new(self, record: journal.Record) -> None:
        with self._mutex:
            self._check_one_writer(record.blob_id)
            self._journal.save(record)
            self._records[record.attach_id] = record

    @contextlib.contextmanager
    def keeping(self, root: str) -> Iterator[None]:
        """Nobody drops this manifest, which a record is about to name."""
        with self._mutex:
            self._coming.append(root)
        try:
            yield
        finally:
            with self._mutex:
                self._coming.remove(root)

    def _roots(self) -> set[str]:
        with self._mutex:
            coming = set(self._coming)
        return coming | {
            record.base.root
            for record in self.records()
            if record.base is not None
            and record.state is not journal.State.RELEASING
        }

    # Start

    def restore(self, record: journal.Record) -> mirrors.Live:
        """Serve an attachment again as it was, or list it as broken.

        :raises session.Lost: its guest would not see what it saw before
        """
        live = mirrors.Live(record)
        try:
            if record.base is None:
                raise errors.Conflict('its record names no base')
            manifest = self.files.manifest(record.base.root)
            if manifest is None:
                raise errors.Conflict(
                    f'its manifest "{record.base.root}" is gone'
                )
            self.files.remove_other_turns(record)
            live.mirror = self.export(record, manifest, create=False)
        except Exception as exc:
            if isinstance(exc, OSError) and exc.errno == errno.ESTALE:
                raise session.Lost(
                    f'the live map of disk "{record.disk}" of server '
                    f'"{record.instance}" is gone ({exc})'
                ) from exc
            live.broken = str(exc) or type(exc).__name__
            LOG.exception(
                'Cannot export disk %s of server %s again (attachment %s); '
                'it stays refused until the agent is restarted',
                record.disk,
                record.instance,
                record.attach_id,
            )
        self.table.put(live)
        return live

    def free(self, record: journal.Record) -> None:
        """What was coming or going goes; its blob is the reconciler's."""
        if record.state is journal.State.ATTACHING:
            LOG.info(
                'Undoing the unfinished attach of disk %s of server %s',
                record.disk,
                record.instance,
            )
        record.state = journal.State.RELEASING
        self._journal.save(record)
        self.files.remove(record.attach_id)

    def export(
        self, record: journal.Record, manifest: Any, *, create: bool
    ) -> Any:
        """The engine's mirror, in service."""
        folder = self.files.mirror(record.files_id)
        if create:
            folder.mkdir(mode=0o700)
        return self._engine.attach(
            instance=record.instance,
            disk=record.disk,
            attach_id=record.files_id,
            directory=str(folder),
            live_map=str(self.files.live_map(record.files_id)),
            size_bytes=record.size_bytes,
            chunk_size_bytes=record.chunk_size_bytes,
            chunk_key=bytes.fromhex(record.chunk_key),
            leaves=manifest.leaves(),
            create=create,
            uid=record.uid,
            gid=record.gid,
            mode=record.mode,
        )

    # Attach

    def attach(
        self, key: mirrors.Key, request: Request
    ) -> tuple[mirrors.Live, bool]:
        """The mirror, and whether it is a new one.

        :raises lazyblob.exceptions.NotFound: no such blob or version
        :raises lazyblob.exceptions.CatalogUnavailable: try again
        :raises Conflict: another blob is attached there; it would shrink
        """
        with self.table.hold(key):
            live = self.table.get(key)
            if live is not None:
                self._check_same(live, request)
                if request.size_bytes is not None:
                    self.grow(live, request.size_bytes)
                return live, False
            return self._attach(key, request), True

    @staticmethod
    def _check_same(live: mirrors.Live, request: Request) -> None:
        live.serving()
        record = live.record
        if request.clone:
            same = request.clone == record.clone and (
                request.clone_version in (None, record.clone_version)
            )
        else:
            same = not record.clone and request.blob == record.blob_id
        if not same:
            raise errors.Conflict(
                f'disk "{record.disk}" of server "{record.instance}" is '
                f'attached to blob "{record.clone or record.blob_id}"; '
                'release it first'
            )

    def _attach(self, key: mirrors.Key, request: Request) -> mirrors.Live:
        repository = self._repository.verified()
        source = repository.catalog.version(
            request.clone or request.blob, request.clone_version
        )
        blob = repository.catalog.get(source.blob_id)
        size_bytes = request.size_bytes or source.size_bytes
        self._check_size(key, source.size_bytes, size_bytes)
        attach_id = str(uuid.uuid4())
        blob_id = source.blob_id
        if request.clone:
            blob_id = journal.blob_id_for(*key, attach_id)
        record = journal.Record(
            attach_id=attach_id,
            instance=key[0],
            disk=key[1],
            state=journal.State.ATTACHING,
            blob_id=blob_id,
            secret=secrets.token_hex(32),
            project_id=request.project_id or blob.project_id,
            clone=source.blob_id if request.clone else '',
            clone_version=source.number if request.clone else 0,
            size_bytes=size_bytes,
            base_size_bytes=source.size_bytes,
            chunk_size_bytes=blob.chunk_size_bytes,
            uid=request.uid,
            gid=request.gid,
            mode=MODE,
        )
        self._save_new(record)
        try:
            manifest = self._acquire(record, repository, source)
            mirror = self.export(record, manifest, create=True)
        except BaseException:
            self._withdraw(record)
            raise
        record.state = journal.State.ATTACHED
        self._journal.save(record)
        live = mirrors.Live(record, mirror)
        self.table.put(live)
        LOG.info(
            'Attached disk %s of server %s: attachment %s writes to blob %s',
            record.disk,
            record.instance,
            record.attach_id,
            record.blob_id,
        )
        return live

    def _acquire(
        self, record: journal.Record, repository: Any, source: api.Version
    ) -> Any:
        """Become the blob's writer and keep what the mirror reads by."""
        catalog = repository.catalog
        if record.clone:
            version = catalog.clone(
                record.clone,
                record.clone_version,
                blob_id=record.blob_id,
                kind=api.Kind.DISK,
                project_id=record.project_id,
            )
        else:
            version = catalog.version(record.blob_id)
        record.epoch = catalog.claim(record.blob_id, record.secret)
        blob = catalog.get(record.blob_id)
        if record.clone and (version.root, blob.head) != (source.root, 1):
            # Nobody else knows of it, but who has read it off the bus.
            raise errors.Conflict(
                f'blob "{record.blob_id}" was cloned for this disk a moment '
                f'ago and is no copy of "{source.blob_id}" any more; attach '
                'again, and see who else speaks on the message bus'
            )
        if blob.head != version.number:
            # Somebody published between the two; ours is the epoch now.
            version = catalog.version(record.blob_id, blob.head)
        point = journal.Point(version.number, version.root)
        record.base, record.parent = point, point
        record.chunk_size_bytes = blob.chunk_size_bytes
        record.base_size_bytes = version.size_bytes
        record.chunk_key = repository.chunk_key(blob.scope).hex()
        self._check_size(record.key, version.size_bytes, record.size_bytes)
        manifest = repository.manifest(version.root, blob.scope)
        self.files.save_manifest(version.root, manifest)
        return manifest

    def _check_one_writer(self, blob_id: str) -> None:
        for record in self._records.values():
            if (
                record.blob_id == blob_id
                and record.state is not journal.State.RELEASING
            ):
                raise errors.Conflict(
                    f'blob "{blob_id}" is written by disk "{record.disk}" of '
                    f'"{record.instance}" already; release that, or attach a '
                    'clone'
                )

    @staticmethod
    def _check_size(
        key: mirrors.Key, base_size_bytes: int, size_bytes: int
    ) -> None:
        if size_bytes < base_size_bytes:
            raise errors.Conflict(
                f'disk "{key[1]}" of server "{key[0]}" would shrink from '
                f'{base_size_bytes} to {size_bytes} bytes; ask for more'
            )

    def _withdraw(self, record: journal.Record) -> None:
        """Undo what can be undone at once; the rest is the reconciler's."""
        record.state = journal.State.RELEASING
        try:
            self._journal.save(record)
            self.files.remove(record.attach_id)
        except OSError as exc:
            LOG.warning(
                'Could not remove what attachment %s left; tried again '
                'later: %s',
                record.attach_id,
                exc,
            )

    # What is asked of one mirror

    def grow(self, live: mirrors.Live, size_bytes: int) -> None:
        """Contract 8: files, then journal, and only then a guest sees it."""
        mirror = live.serving()
        with live.lock:
            record = live.record
            before = record.size_bytes
            self._check_size(record.key, before, size_bytes)
            if size_bytes == before:
                return
            mirror.reserve(size_bytes)
            record.size_bytes = size_bytes
            try:
                self._journal.save(record)
            except BaseException:
                record.size_bytes = before
                raise
            mirror.grow(size_bytes)
        LOG.info(
            'Disk %s of server %s grew from %d to %d bytes',
            record.disk,
            record.instance,
            before,
            size_bytes,
        )

    @staticmethod
    def head(live: mirrors.Live, length_bytes: int) -> bytes:
        """The first bytes, as the guest sees them."""
        mirror = live.serving()
        length = min(length_bytes, HEAD_BYTES_MAX, live.record.size_bytes)
        return mirror.read(0, length)

    def set_owner(
        self, key: mirrors.Key, uid: int, gid: int, mode: int
    ) -> None:
        """Remember what libvirt made of owner and mode (contract 35)."""
        live = self.table.get(key)
        if live is None:
            return
        with live.lock:
            record = live.record
            if record.state is not journal.State.ATTACHED:
                return
            if (record.uid, record.gid, record.mode) != (uid, gid, mode):
                record.uid, record.gid, record.mode = uid, gid, mode
                self._journal.save(record)

    def describe_whole(self, live: mirrors.Live) -> dict[str, Any]:
        """The same, and how long requests took and who waits."""
        found = self.describe(live)
        mirror = live.mirror
        found['latencies'] = (
            [] if mirror is None else latencies.plain(mirror.latencies())
        )
        found['waits'] = (
            [] if mirror is None else latencies.waits(mirror, WAITS_MAX)
        )
        return found

    def describe(self, live: mirrors.Live) -> dict[str, Any]:
        """What the API tells of a mirror."""
        record = live.record
        status: dict[str, Any] = {}
        if live.mirror is not None:
            status = live.mirror.status()
        parent = record.parent
        return {
            'instance': record.instance,
            'disk': record.disk,
            'path': self.files.path(record.key),
            'state': 'broken' if live.broken else record.state.value,
            'error': live.broken or None,
            'size_bytes': record.size_bytes,
            'base_size_bytes': record.base_size_bytes,
            'local_bytes': status.get('local_bytes', 0),
            'dirty_bytes': status.get('dirty_bytes', 0),
            'fetched_bytes': status.get('fetched_bytes', 0),
            **latencies.summary(status),
            'blob_id': record.blob_id,
            'clone': record.clone or None,
            'project_id': record.project_id,
            'parent': parent.version if parent else None,
            'base': record.base.version if record.base else None,
            'attach_id': record.attach_id,
            'commit_id': record.commit.commit_id if record.commit else None,
            'frozen': live.freeze is not None and live.freeze.held.is_held,
        }
