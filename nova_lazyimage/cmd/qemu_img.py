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
"""Other image formats become raw by qemu-img.

It cannot write to a pipe, so what it makes is a sparse temporary file, which
has no name as soon as it is open. A file that points at others (backing
file, data file) is refused: reading it would read what its maker chose.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO

from lazyblob import exceptions

_SPARSE = '64k'


def _run(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ['qemu-img', *arguments],
            capture_output=True,
            check=False,
            text=True,
        )
    except FileNotFoundError:
        raise exceptions.InvalidConfiguration(
            'qemu-img is not installed; install it (Debian: qemu-utils), or '
            'convert the file to raw elsewhere'
        ) from None
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:]
        raise exceptions.InvalidConfiguration(
            f'qemu-img {arguments[0]} failed: {"".join(reason)}'
        )
    return done.stdout


def _describe(path: str, *arguments: str) -> dict[str, Any]:
    # "--": a name never counts as an option; "file:" never as a protocol.
    text = _run('info', '--output=json', *arguments, '--', f'file:{path}')
    described: dict[str, Any] = json.loads(text)
    return described


def probe(path: str) -> str:
    """The format that qemu-img takes a file for."""
    return str(_describe(path)['format'])


@contextlib.contextmanager
def converted(path: str, source_format: str) -> Iterator[BinaryIO]:
    """The content of a disk image as a raw file."""
    described = _describe(path, '-f', source_format)
    specific = described.get('format-specific', {}).get('data', {})
    for other in (
        described.get('backing-filename'),
        specific.get('data-file'),
        *specific.get('extents', [])[1:],
    ):
        if other:
            raise exceptions.InvalidConfiguration(
                f'"{path}" refers to another file, which is not followed; '
                f'flatten it with qemu-img convert first'
            )
    with tempfile.TemporaryDirectory(prefix='lazyimage-import-') as folder:
        raw = pathlib.Path(folder, 'raw')
        _run(
            'convert',
            *('-f', source_format, '-O', 'raw', '-S', _SPARSE),
            *('--', f'file:{path}', f'file:{raw}'),
        )
        with raw.open('rb') as opened:
            os.unlink(raw)
            yield opened
