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
"""Writing a version out as a raw file, sparse where it has holes.

Crash: the file is written under another name and renamed when it is whole
and synced.
"""

import os
import pathlib
from collections.abc import Callable

from lazyblob import exceptions
from lazyblob import reader


def export(
    source: reader.Reader,
    path: str | os.PathLike[str],
    *,
    progress: Callable[[int], None] | None = None,
) -> None:
    """:param progress: called with the bytes done so far

    :raises InvalidConfiguration: the file cannot be written
    """
    target = pathlib.Path(path)
    partial = target.with_name(f'.{target.name}.part')
    try:
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            _copy(source, handle, progress)
            os.fsync(handle)
        finally:
            os.close(handle)
        partial.replace(target)
    except OSError as exc:
        partial.unlink(missing_ok=True)
        raise exceptions.InvalidConfiguration(
            f'could not write "{target}": {exc.strerror}; choose another place'
        ) from exc
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _copy(
    source: reader.Reader,
    handle: int,
    progress: Callable[[int], None] | None,
) -> None:
    os.ftruncate(handle, source.size_bytes)
    offset = 0
    for piece, is_hole in source.pieces():
        if not is_hole:
            view = memoryview(piece)
            while view:
                count = os.pwrite(handle, view, offset)
                view = view[count:]
                offset += count
        else:
            offset += len(piece)
        if progress is not None:
            progress(offset)
