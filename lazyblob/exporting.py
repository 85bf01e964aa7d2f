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
"""Writing a version to a file, or to a pipe.

Crash: the file is written under another name and renamed when it is whole
and synced; so is the folder that has its name.
"""

import contextlib
import os
import pathlib
import stat
from collections.abc import Callable, Iterator
from typing import BinaryIO

from lazyblob import exceptions
from lazyblob import reader

Progress = Callable[[int], None]


def export(
    source: reader.Reader,
    path: str | os.PathLike[str],
    *,
    progress: Progress | None = None,
) -> None:
    """Write a sparse raw file.

    :param progress: called with the bytes done so far
    :raises InvalidConfiguration: the file cannot be written
    """
    with appearing(path) as partial:
        handle = os.open(partial, os.O_WRONLY)
        try:
            os.ftruncate(handle, source.size_bytes)
            for offset, piece in data_of(source, progress=progress):
                _write(handle, offset, piece)
        finally:
            os.close(handle)


def export_to_pipe(
    source: reader.Reader,
    target: BinaryIO,
    *,
    progress: Progress | None = None,
) -> None:
    """Write every byte, zeros for holes.

    :param progress: called with the bytes done so far
    """
    done_bytes = 0
    for piece in source.stream():
        target.write(piece)
        done_bytes += len(piece)
        if progress is not None:
            progress(done_bytes)
    target.flush()


def data_of(
    source: reader.Reader,
    *,
    unit_bytes: int = 0,
    progress: Progress | None = None,
) -> Iterator[tuple[int, bytes]]:
    """Offsets and bytes of what is no hole.

    :param unit_bytes: in pieces of it or of a chunk, whichever is larger
    :param progress: called with the bytes done so far
    """
    begin, pending = 0, bytearray()
    for offset, piece in source.data():
        if progress is not None:
            progress(offset + len(piece))
        if source.chunk_size_bytes >= unit_bytes:
            yield offset, piece
            continue
        if pending and offset >= begin + unit_bytes:
            yield begin, bytes(pending)
            pending = bytearray()
        if not pending:
            begin = offset - offset % unit_bytes
            pending = bytearray(min(unit_bytes, source.size_bytes - begin))
        at = offset - begin
        pending[at : at + len(piece)] = piece
    if pending:
        yield begin, bytes(pending)
    if progress is not None:
        progress(source.size_bytes)


@contextlib.contextmanager
def appearing(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """A name to write to, which becomes the file when all went well.

    :raises InvalidConfiguration: the file cannot be written, or is no file
    """
    target = pathlib.Path(path)
    partial = target.with_name(f'.{target.name}.part')
    try:
        if target.exists() and not stat.S_ISREG(target.stat().st_mode):
            raise exceptions.InvalidConfiguration(
                f'"{target}" is no regular file; choose another name, or '
                f'write to it from standard output'
            )
        partial.write_bytes(b'')
        yield partial
        _sync(partial)
        partial.replace(target)
        _sync(target.absolute().parent)
    except OSError as exc:
        _remove(partial)
        raise exceptions.InvalidConfiguration(
            f'could not write "{target}": {exc.strerror}; choose another place'
        ) from exc
    except BaseException:
        _remove(partial)
        raise


def _remove(path: pathlib.Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _sync(path: pathlib.Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write(handle: int, offset: int, piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        count = os.pwrite(handle, view, offset)
        view = view[count:]
        offset += count
