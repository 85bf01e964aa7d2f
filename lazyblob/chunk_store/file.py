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
"""Chunks as files below one folder: ``file:///path``.

Listing goes through obstore. Putting does not, for four things that its
local store leaves open: it renames without any sync; its files get whatever
mode the umask leaves, so that services of one group could not read each
other's; a killed process leaves its half-written files behind for ever; and
a full disk is told only by the text of an error. Nor does reading: a chunk is
three calls of the system here, and a way to another thread and back there.
Here a file is written without a name (``O_TMPFILE``), gets its mode, and is
then linked under its digest, which fails if somebody else was first. Where
the file system cannot do that (NFS), a named temporary file takes its place.

The 256 folders of the first byte exist from :meth:`FileStore.initialise` on,
so that no put makes one: mode 2770, files 0640, under any umask, so that the
services that share a store share a group.

Crash: an unnamed file vanishes with its process; a named one, which a
replacement needs for a moment, too, stays until a later
:meth:`FileStore.initialise` finds it a day old. Power: :meth:`sync` is
``syncfs``, which takes the folders' entries along; a file that was cut short
is not plausible and is replaced.

Threads: one instance serves them all; nothing is shared but the path.
"""

import contextlib
import ctypes
import errno
import functools
import os
import pathlib
import secrets
import stat
import threading
import time
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence

import obstore.store

from lazyblob import chunk
from lazyblob import digest as digests
from lazyblob import exceptions
from lazyblob.chunk_store import objects

DIRECTORY_MODE = 0o2770
FILE_MODE = 0o640
_PREFIXES = tuple(f'{byte:02x}' for byte in range(256))
_TEMPORARY_PREFIX = '.new-'
_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT)
# No put takes so long: whoever wrote it is dead.
_LEFT_SECONDS = 24 * 3600
_SYNC_FILE_RANGE_WRITE = 2
_FULL = (errno.ENOSPC, errno.EDQUOT)


def path_of(url: str) -> pathlib.Path:
    """:raises InvalidConfiguration: not ``file:///one/absolute/path``"""
    parts = urllib.parse.urlsplit(url)
    path = urllib.parse.unquote(parts.path)
    if (
        parts.scheme != 'file'
        or parts.netloc not in ('', 'localhost')
        or not path.startswith('/')
        or parts.query
        or parts.fragment
    ):
        raise exceptions.InvalidConfiguration(
            f'chunk store "{url}" is no "file:///absolute/path"'
        )
    if ',' in parts.path:
        raise exceptions.InvalidConfiguration(
            f'chunk store "{url}" names several folders where one is '
            f'expected; write a comma that belongs to a name as "%2C"'
        )
    return pathlib.Path(path)


class FileStore(objects.ObjectStore):
    """Objects as files.

    The folder need not exist yet: it is looked for at each operation, so
    that a service may start before its mount.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._root = path_of(url)
        self._lock = threading.Lock()
        self._handle: int | None = None
        self._lost: OSError | None = None

    def _open(self) -> obstore.store.ObjectStore:
        if not self._root.is_dir():
            raise exceptions.TemporaryStoreError(
                f'"{self.url}" does not exist; run "lazyimage init", or '
                f'mount it'
            )
        return obstore.store.LocalStore(self._root)

    def initialise(self) -> None:
        try:
            _make_directory(self._root, exist_ok=True)
            for prefix in _PREFIXES:
                _make_directory(self._root / prefix, exist_ok=False)
                _sweep(self._root / prefix)
        except OSError as exc:
            raise self._failed('initialise', self._root, exc) from exc
        self.sync(())

    def get(self, digest: bytes, size_bytes_max: int) -> bytes:
        (data,) = self._parts(digest, size_bytes_max, size_bytes_max)
        return data

    def get_parts(
        self, digest: bytes, size_bytes_max: int
    ) -> tuple[bytes, bytes]:
        rest_bytes_max = size_bytes_max - chunk.HEADER_BYTES
        head, rest = self._parts(
            digest, size_bytes_max, chunk.HEADER_BYTES, rest_bytes_max
        )
        return head, rest

    def _parts(
        self, digest: bytes, size_bytes_max: int, *lengths: int
    ) -> list[bytes]:
        path = self._path(digest)
        try:
            size_bytes, parts = _read(path, *lengths)
        except FileNotFoundError as exc:
            self._check_mounted(path)
            raise exceptions.NotFound(
                f'could not read "{digest.hex()}" in "{self.url}": it is not '
                f'there'
            ) from exc
        except OSError as exc:
            raise self._failed('read', path, exc) from exc
        if size_bytes > size_bytes_max:
            raise objects.too_large(digest, size_bytes, size_bytes_max)
        return parts

    def has(self, digest: bytes) -> bool:
        path = self._path(digest)
        try:
            size_bytes, (head,) = _read(path, chunk.HEADER_BYTES)
        except FileNotFoundError:
            self._check_mounted(path)
            return False
        except OSError as exc:
            raise self._failed('look for', path, exc) from exc
        return chunk.plausible_length(head, size_bytes)

    def put(self, digest: bytes, *parts: digests.Buffer) -> bool:
        path = self._path(digest)
        try:
            self._watch()
            if os.path.exists(path) and self.has(digest):
                return False
            with _written(os.path.dirname(path), parts) as name:
                try:
                    _link(name, path)
                except FileExistsError:
                    if self.has(digest):
                        return False
                    _replace(name, path)
            return True
        except OSError as exc:
            raise self._failed('write', path, exc) from exc

    def replace(self, digest: bytes, *parts: digests.Buffer) -> None:
        path = self._path(digest)
        try:
            self._watch()
            with _written(os.path.dirname(path), parts) as name:
                _replace(name, path)
        except OSError as exc:
            raise self._failed('replace', path, exc) from exc

    def _check_mounted(self, path: str) -> None:
        """Absence is believed only while the store itself is there."""
        parent = os.path.dirname(path)
        if not os.path.isdir(parent):
            raise exceptions.TemporaryStoreError(
                f'"{parent}" does not exist; run "lazyimage init", or mount '
                f'"{self.url}"'
            )

    def _path(self, digest: bytes) -> str:
        return f'{self._root}/{objects.key(digest)}'

    def sync(self, digests: Iterable[bytes]) -> None:
        """Everything on the file system at once; ``digests`` is not read.

        A failure is for good: the kernel tells of it once, and what it lost
        may be any writer's. The process has to be started again.
        """
        try:
            handle = self._watch()
            with self._lock:
                if self._lost is not None:
                    raise self._lost
                try:
                    _sync_file_system(handle)
                except OSError as exc:
                    self._lost = exc
                    raise
        except OSError as exc:
            raise self._failed('sync', self._root, exc) from exc

    def _watch(self) -> int:
        """A descriptor that was open before what :meth:`sync` answers for.

        ``syncfs`` tells of the writes that failed since its descriptor was
        opened, so it has to be opened before the first of them.
        """
        with self._lock:
            if self._handle is None:
                self._handle = os.open(
                    self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
                )
            return self._handle

    def close(self) -> None:
        with self._lock:
            if self._handle is not None:
                os.close(self._handle)
                self._handle = None

    def _failed(
        self, verb: str, path: str | pathlib.Path, exc: OSError
    ) -> exceptions.LazyBlobError:
        """What a failure of the system means, and what helps."""
        what = f'could not {verb} "{path}": {exc.strerror}'
        if exc.errno in _FULL:
            return exceptions.StoreFull(f'{what}; make room in "{self.url}"')
        if exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return exceptions.StoreDenied(
                f'{what}; check who owns "{self.url}" and which user and '
                f'group this runs as'
            )
        if exc.errno == errno.ENOENT:
            return exceptions.StoreError(
                f'{what}; run "lazyimage init" for "{self.url}", or mount it'
            )
        return exceptions.StoreError(what)


def _make_directory(path: pathlib.Path, *, exist_ok: bool) -> None:
    """Ours get their mode whatever the umask; others' keep theirs."""
    try:
        path.mkdir(parents=exist_ok)
    except FileExistsError:
        if not stat.S_ISDIR(path.stat().st_mode):
            raise
    else:
        path.chmod(DIRECTORY_MODE)


def _sweep(directory: pathlib.Path) -> None:
    """Remove the temporary files of processes that died."""
    before = time.time() - _LEFT_SECONDS
    with os.scandir(directory) as entries:
        for entry in entries:
            if not entry.name.startswith(_TEMPORARY_PREFIX):
                continue
            with contextlib.suppress(FileNotFoundError):
                if entry.stat().st_mtime < before:
                    os.unlink(entry.path)


def _read(path: str, *lengths: int) -> tuple[int, list[bytes]]:
    """A file's size, and so much of it, in parts of these lengths."""
    # Not to be kept waiting by what is no file, should somebody put it there.
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise exceptions.ChunkCorrupt(f'"{path}" is no file')
        parts, offset = [], 0
        for length in lengths:
            # Not as much memory as might be: as there is of the file.
            length = min(length, max(0, found.st_size - offset))
            parts.append(os.pread(handle, length, offset))
            offset += length
        return found.st_size, parts
    finally:
        os.close(handle)


@contextlib.contextmanager
def _written(directory: str, parts: Sequence[digests.Buffer]) -> Iterator[str]:
    """A name by which a new file with its final mode can be linked."""
    name = f'{directory}/{_TEMPORARY_PREFIX}{secrets.token_hex(8)}'
    is_named = False
    flags = os.O_WRONLY | os.O_CLOEXEC
    try:
        handle = os.open(directory, flags | os.O_TMPFILE, FILE_MODE)
    except OSError as exc:
        if exc.errno not in _NO_TMPFILE or not os.path.isdir(directory):
            raise
        handle = os.open(name, flags | os.O_CREAT | os.O_EXCL, FILE_MODE)
        is_named = True
    try:
        _write(handle, parts)
        os.fchmod(handle, FILE_MODE)
        _begin_writing_back(handle)
        yield name if is_named else f'/proc/self/fd/{handle}'
    finally:
        os.close(handle)
        if is_named:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)


def _write(handle: int, parts: Sequence[digests.Buffer]) -> None:
    left = [memoryview(part) for part in parts if part]
    while left:
        count = os.writev(handle, left)
        while left and count >= len(left[0]):
            count -= len(left.pop(0))
        if count:
            left[0] = left[0][count:]


def _begin_writing_back(handle: int) -> None:
    """So that the disk works while the rest is hashed.

    A wish: what becomes of the writes is told by :meth:`FileStore.sync`.
    """
    _libc().sync_file_range(
        handle,
        ctypes.c_int64(0),
        ctypes.c_int64(0),
        ctypes.c_uint(_SYNC_FILE_RANGE_WRITE),
    )


def _link(name: str, path: str) -> None:
    # Without a descriptor Python calls link(), which links /proc's symbolic
    # link itself; the name is absolute, so that the descriptor is not used.
    os.link(name, path, src_dir_fd=0, follow_symlinks=True)


def _replace(name: str, path: str) -> None:
    """Put the new file in the place of one that is bad."""
    step = f'{os.path.dirname(path)}/{_TEMPORARY_PREFIX}'
    step += secrets.token_hex(8)
    _link(name, step)
    try:
        os.replace(step, path)
    except OSError:
        os.unlink(step)
        raise


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _sync_file_system(handle: int) -> None:
    if _libc().syncfs(handle):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
