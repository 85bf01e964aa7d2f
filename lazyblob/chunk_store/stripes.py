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
"""Chunks on several disks: ``file:///a,/b,...``, a folder a disk.

Each folder is a :class:`~lazyblob.chunk_store.file.FileStore` of its own, and
a file of it says which: ``disk`` holds an identity, drawn once by
:meth:`StripedStore.initialise`, and the identities of all disks that the store
had then. An object's *place* is the disk whose identity and the digest give
the highest score (rendezvous hashing), so that:

- every process finds the same place, whatever the order of the URL and
  wherever the disks are mounted;
- a disk more changes the place of one object in n, and of the others none;
- disks fill evenly; they should be of one size.

Reads ask the place first, then the other disks in the order of their scores:
after a disk was added an object may lie where its place used to be. It is not
moved; a put of it finds it there and leaves it. Puts go to the place and
nowhere else: a full disk is a full store, told with the folder's name, since
an object that lies where nobody looks first costs every later read.

*To add a disk*: ``lazyimage init --chunk-store-moved`` with the longer list,
then restart the services with it. Until then those with the shorter list find
what lies on the old disks and put there, but wait for what they do not find;
the others find all of it.

*To give one up* that failed: remove the ``disk`` files of the others and run
``lazyimage init`` with the list of those. They get new identities, so that
most objects do not lie at their places any more; they are found all the same.

*A disk that is missing* is not empty. An object found on another disk is
served; what is found on none may lie on the missing one, so that its absence
is a :class:`~lazyblob.exceptions.TemporaryStoreError`, never "not found". Its
puts wait with it. A folder that is there without its ``disk`` file is not
mounted, and one with a stranger's file is refused: it may be another store's,
or two entries may have been mounted the wrong way round, which is harmless
only as long as all of them are there. Nor may a list leave a disk out that
the store has: what the ``disk`` files know of must all be named.

One disk may fail for good: what lay there is lost, as on any single disk. Put
the disks on RAID, or use a store that keeps copies.

Crash: as of one folder. :meth:`StripedStore.initialise` writes the identities
file by file, each whole; one that was cut off is completed by the next.

Durability: :meth:`StripedStore.sync` syncs each disk that this store put on
or found an object on since its last sync.

Threads: one instance serves them all.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from lazyblob import digest as digests
from lazyblob import exceptions
from lazyblob.chunk_store import base
from lazyblob.chunk_store import file

T = TypeVar('T')
#: A disk's identity, and those of all disks of its store.
Noted = tuple[str, frozenset[str]]

IDENTITY = 'disk'
DISKS_MAX = 64


def open_store(url: str) -> base.ChunkStore:
    """The store of a ``file://`` URL, of one folder or of several.

    :raises InvalidConfiguration: not such a URL
    """
    if ',' in url:
        return StripedStore(url)
    return file.FileStore(url)


def paths_of(url: str) -> list[pathlib.Path]:
    """The folders that a URL names.

    A comma within a folder's name is written ``%2C``.

    :raises InvalidConfiguration: it is not ``file:///a,/b``
    """
    head, separator, rest = url.partition('://')
    parts = rest.split(',')
    # Each alone is a URL of one folder, and is checked as that.
    found = [file.path_of(f'{head}{separator}{part}') for part in parts]
    if len(set(found)) < len(found):
        raise exceptions.InvalidConfiguration(
            f'chunk store "{url}" names a folder twice; name each once'
        )
    if len(found) > DISKS_MAX:
        raise exceptions.InvalidConfiguration(
            f'chunk store "{url}" names {len(found)} folders and at most '
            f'{DISKS_MAX} may be; make file systems over several disks'
        )
    return found


class Disk:
    """One folder of the store.

    :ivar identity: '' until it has been there for the first time
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.store = file.FileStore(path.as_uri())
        self.identity = ''
        self.is_touched = False
        self._name = f'{path}/{IDENTITY}'
        self._last: tuple[tuple[int, int, int], Noted] | None = None

    def read(self) -> Noted:
        """Its identity and those of all disks; '' if it is not there.

        As cheap as one stat while the file stays the same.

        :raises StoreError: its file cannot be read
        """
        name = self._name
        try:
            state = os.stat(name)
            key = state.st_dev, state.st_ino, state.st_mtime_ns
            last = self._last
            if last is not None and last[0] == key:
                return last[1]
            with open(name, encoding='ascii') as source:
                found = json.load(source)
            noted = str(found['identity']), frozenset(map(str, found['all']))
            self._last = key, noted
            return noted
        except (FileNotFoundError, NotADirectoryError):
            return '', frozenset()
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise exceptions.StoreError(
                f'"{name}" cannot be read ({exc}); restore it, or take the '
                f'folder out of the chunk store\'s URL'
            ) from exc

    def write(self, identity: str, everybody: Iterable[str]) -> None:
        """Note them, whole or not at all."""
        text = json.dumps({'identity': identity, 'all': sorted(everybody)})
        new = self.path / f'.{IDENTITY}-{uuid.uuid4().hex}'
        try:
            with open(new, 'w', encoding='ascii') as target:
                target.write(text + '\n')
                os.fchmod(target.fileno(), file.FILE_MODE)
                os.fsync(target.fileno())
            os.replace(new, self.path / IDENTITY)
        except OSError as exc:
            with contextlib.suppress(OSError):
                new.unlink()
            raise self.store._failed(
                'write', self.path / IDENTITY, exc
            ) from exc


class StripedStore(base.ChunkStore):
    """Objects as files below several folders.

    The folders need not exist yet; each is looked for when it is needed.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._disks = [Disk(path) for path in paths_of(url)]
        self._lock = threading.Lock()
        self._syncing = threading.Lock()
        self._is_complete = False

    def initialise(self) -> None:
        """Make the folders, and give an identity to those without.

        :raises Conflict: a folder is another store's
        """
        for disk in self._disks:
            disk.store.initialise()
        found = [disk.read() for disk in self._disks]
        identities = [identity or uuid.uuid4().hex for identity, _all in found]
        self._check_unlike(identities)
        # Each that has an identity knows of all that had one then.
        known = frozenset[str]().union(*(others for _, others in found))
        strangers = known - set(identities)
        if strangers:
            raise exceptions.Conflict(
                f'"{self.url}" leaves out {len(strangers)} of the disks that '
                f'its folders belong together with; name all of them'
            )
        # An identity has to be on its disk before others know of it: else a
        # crash in between would leave them knowing of one that nobody has.
        for disk, identity in zip(self._disks, identities, strict=True):
            if not disk.read()[0]:
                disk.write(identity, known | {identity})
        for disk, identity in zip(self._disks, identities, strict=True):
            if disk.read() != (identity, frozenset(identities)):
                disk.write(identity, identities)
                disk.is_touched = True
        self._sync(self._disks)

    def put(self, digest: bytes, *parts: digests.Buffer) -> bool:
        order = self._order(digest)
        # Where it lay before a disk was added it stays.
        for disk in order[1:]:
            if self._is_there(disk) and disk.store.has(digest):
                disk.is_touched = True
                return False
        return self._at_place(order, lambda store: store.put(digest, *parts))

    def replace(self, digest: bytes, *parts: digests.Buffer) -> None:
        """At its place, and wherever else it lies."""
        order = self._order(digest)
        self._at_place(order, lambda store: store.replace(digest, *parts))
        for disk in order[1:]:
            if self._is_there(disk) and disk.store.has(digest):
                disk.store.replace(digest, *parts)
                disk.is_touched = True

    def get(self, digest: bytes, size_bytes_max: int) -> bytes:
        return self._found(
            digest, lambda store: store.get(digest, size_bytes_max)
        )

    def get_parts(
        self, digest: bytes, size_bytes_max: int
    ) -> tuple[bytes, bytes]:
        return self._found(
            digest, lambda store: store.get_parts(digest, size_bytes_max)
        )

    def _found(self, digest: bytes, read: Callable[[file.FileStore], T]) -> T:
        """From the first disk that has it, and can read it."""
        absent: exceptions.LazyBlobError | None = None
        unread: exceptions.LazyBlobError | None = None
        for disk in self._order(digest):
            if not self._is_there(disk):
                continue
            try:
                return read(disk.store)
            except exceptions.NotFound as exc:
                absent = exc
            except exceptions.StoreError as exc:
                unread = unread or exc
        if unread is not None:
            raise unread
        self._refuse_missing(digest)
        raise absent or exceptions.NotFound(digest.hex())

    def has(self, digest: bytes) -> bool:
        for disk in self._order(digest):
            if self._is_there(disk) and disk.store.has(digest):
                disk.is_touched = True
                return True
        self._refuse_missing(digest)
        return False

    def sync(self, digests: Iterable[bytes]) -> None:
        """Every disk that was put on, or found on; ``digests`` is not read."""
        self._sync(self._disks)

    def list(self) -> Iterator[tuple[bytes, int]]:
        """Disk by disk; an object that lies on two of them once."""
        self._learn()
        for disk in self._disks:
            if not self._is_there(disk):
                raise _missing(disk)
        for number, disk in enumerate(self._disks):
            for digest, size_bytes in disk.store.list():
                if not any(
                    earlier.store.has(digest)
                    for earlier in self._disks[:number]
                ):
                    yield digest, size_bytes
            if not self._is_there(disk):
                raise _missing(disk)

    def delete(self, digest: bytes) -> None:
        """Wherever it lies."""
        self._learn()
        self._refuse_missing(digest)
        for disk in self._disks:
            disk.store.delete(digest)

    def close(self) -> None:
        for disk in self._disks:
            disk.store.close()

    def _order(self, digest: bytes) -> Sequence[Disk]:
        """The object's place first."""
        self._learn()
        return sorted(
            self._disks,
            key=lambda disk: _score(disk.identity, digest),
            reverse=True,
        )

    def _learn(self) -> None:
        """Every disk's identity, from the files of those that are there.

        :raises TemporaryStoreError: one that was never seen is missing, so
            that nobody can say whose place is where
        """
        if self._is_complete:
            return
        with self._lock:
            identities = []
            everybody: frozenset[str] = frozenset()
            for disk in self._disks:
                identity, others = disk.read()
                identities.append(identity)
                everybody |= others
            unknown = [i for i, each in enumerate(identities) if not each]
            if len(unknown) == 1:
                # The one that is left is the missing one's.
                rest = everybody - set(identities)
                if len(rest) == 1:
                    identities[unknown[0]] = next(iter(rest))
                    unknown = []
            if unknown:
                raise _missing(self._disks[unknown[0]])
            self._check_unlike(identities)
            if everybody - set(identities):
                raise exceptions.InvalidConfiguration(
                    f'"{self.url}" leaves out a disk that its folders belong '
                    f'together with; name all of them'
                )
            for disk, identity in zip(self._disks, identities, strict=True):
                disk.identity = identity
            self._is_complete = True

    def _check_unlike(self, identities: Sequence[str]) -> None:
        if len(set(identities)) < len(identities):
            raise exceptions.Conflict(
                f'two folders of "{self.url}" say that they are the same '
                f'disk; one is a copy of the other, or mounted twice'
            )

    def _is_there(self, disk: Disk) -> bool:
        """Whether it is mounted, and is who it was.

        :raises Conflict: another disk is mounted in its place
        """
        identity, _others = disk.read()
        if identity and identity != disk.identity:
            raise exceptions.Conflict(
                f'"{disk.path}" is disk "{identity}" and was '
                f'"{disk.identity}"; mount each where it was, and restart'
            )
        return bool(identity)

    def _refuse_missing(self, digest: bytes) -> None:
        """It may lie on a disk that is not there, or not known of."""
        what = f'could not find "{digest.hex()}" in "{self.url}", but'
        ours = {disk.identity for disk in self._disks}
        for disk in self._disks:
            if not self._is_there(disk):
                raise exceptions.TemporaryStoreError(
                    f'{what} "{disk.path}" is not mounted; mount it'
                )
            if not disk.read()[1] <= ours:
                raise exceptions.TemporaryStoreError(
                    f'{what} a disk was added that is not named there; '
                    f'configure it, and restart'
                )

    def _at_place(
        self,
        order: Sequence[Disk],
        operation: Callable[[base.ChunkStore], T],
    ) -> T:
        disk = order[0]
        if not self._is_there(disk):
            raise _missing(disk)
        answer = operation(disk.store)
        # Not before: a sync meanwhile would take the mark away.
        disk.is_touched = True
        return answer

    def _sync(self, disks: Sequence[Disk]) -> None:
        """Those of them that are touched when it is their turn.

        Whoever comes while another syncs waits for it: what he put may be
        what is being synced.
        """
        with self._syncing:
            for disk in disks:
                if not disk.is_touched:
                    continue
                # What is put from here on is the next sync's.
                disk.is_touched = False
                try:
                    disk.store.sync(())
                except BaseException:
                    disk.is_touched = True
                    raise


def _score(identity: str, digest: bytes) -> bytes:
    return hashlib.blake2b(
        digest, digest_size=16, key=identity.encode('ascii')
    ).digest()


def _missing(disk: Disk) -> exceptions.TemporaryStoreError:
    return exceptions.TemporaryStoreError(
        f'"{disk.path}" is not mounted, or was never made; mount it, or run '
        f'"lazyimage init"'
    )
