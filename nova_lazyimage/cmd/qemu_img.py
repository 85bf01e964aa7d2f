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
"""Disk images of other formats, by way of QEMU's own programs.

``qemu-img`` cannot read from a pipe or write to one, so what a conversion
moves goes through ``qemu-nbd``, a child on a socket in a private folder:
there is no temporary copy, whatever the image's size. Holes are told by
``qemu-img map`` and not read.

An image that somebody else made is to be checked by :mod:`.inspection` before
it comes here. What is opened here is opened with the format that was said,
never with one that QEMU finds out.
"""

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from typing import IO, Any

from lazyblob import exceptions
from lazyblob import importing
from nova_lazyimage.cmd import inspection
from nova_lazyimage.cmd import nbd

CLUSTER_BYTES = 64 << 10
_SECTOR_BYTES = 512
_MISSING = (
    'is not installed; install it (Debian: qemu-utils), or convert the file '
    'elsewhere'
)
# What qemu-img check ends with: sound; leaks, which harm nobody; cannot tell.
_SOUND = (0, 3, 63)
_START_SECONDS_MAX = 20
_END_SECONDS_MAX = 600
# Of memory that can be addressed, for who reads a stranger's image; threads
# of qemu-nbd reserve much and use little.
_LOOKING_BYTES_MAX = 1 << 30
_READING_BYTES_MAX = 8 << 30
_SOCKET_PATH_MAX = 107
_REFERENCES = (
    'refers to another file, which is not followed; flatten it with qemu-img '
    'convert first'
)


@contextlib.contextmanager
def content(
    path: str, source_format: str
) -> Iterator[tuple[int, importing.Stream]]:
    """Size and content of an image that was found to be safe."""
    node = _node(path, inspection.DRIVERS[source_format])
    described = json.loads(_run('info', '--output=json', _name(node)))
    specific = described.get('format-specific', {}).get('data', {})
    # Once more, by who will open it.
    if (
        described.get('backing-filename')
        or specific.get('data-file')
        or specific.get('extents', [])[1:]
    ):
        raise exceptions.InvalidConfiguration(f'"{path}" {_REFERENCES}')
    _check(path, node)
    # What a VDI's check leaves out.
    end_bytes = os.stat(path).st_size if source_format == 'vdi' else None
    with served(node) as disk:
        with _extents(node, end_bytes) as extents:
            yield disk.size_bytes, _pieces(disk, extents)


def make_qcow2(
    path: str,
    size_bytes: int,
    pieces: Iterable[tuple[int, bytes]],
    *,
    is_compressed: bool,
) -> None:
    """A new qcow2 file.

    The disk is as large as its content in whole sectors, as qcow2 has it.

    :param pieces: offsets and bytes; what is left out are holes. Compressed:
        in whole clusters, each once
    """
    node, unit_bytes = _node(path, 'qcow2'), _SECTOR_BYTES
    if is_compressed:
        # It takes whole clusters only, at the disk's end as well.
        unit_bytes = CLUSTER_BYTES
    whole_bytes = -(-size_bytes // unit_bytes) * unit_bytes
    _run(
        *('create', '-q', '-f', 'qcow2'),
        *('-o', f'compat=1.1,cluster_size={CLUSTER_BYTES}'),
        *('--', f'file:{path}', str(whole_bytes)),
    )
    filtered = {'driver': 'compress', 'file': node} if is_compressed else node
    with served(filtered, is_writable=True) as disk:
        disk.write(pieces)
        disk.flush()
    exact_bytes = -(-size_bytes // _SECTOR_BYTES) * _SECTOR_BYTES
    if exact_bytes != whole_bytes:
        _run('resize', '-q', '--shrink', _name(node), str(exact_bytes))


def _check(path: str, node: dict[str, Any]) -> None:
    """QEMU reads zeros where a file was cut short, and says nothing."""
    with tempfile.TemporaryFile() as said:
        process = _start(
            ['qemu-img', 'check', '-q', _name(node)],
            _LOOKING_BYTES_MAX,
            stderr=said,
        )
        if process.wait() not in _SOUND:
            raise _damaged(path, _last_line(said))


def _damaged(path: str, reason: str) -> exceptions.InvalidConfiguration:
    return exceptions.InvalidConfiguration(
        f'"{path}" is damaged or cut short ({reason}); fetch it again, or see '
        f'what "qemu-img check" can mend'
    )


@contextlib.contextmanager
def served(
    node: dict[str, Any], *, is_writable: bool = False
) -> Iterator[nbd.Disk]:
    """A block node of QEMU's, by NBD.

    :raises StoreError: qemu-nbd failed, also at its end
    """
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(
            tempfile.TemporaryDirectory(prefix='lazyimage-')
        )
        path = f'{folder}/nbd'
        if len(path) > _SOCKET_PATH_MAX:
            raise exceptions.InvalidConfiguration(
                f'"{folder}" is too long a name for a socket; set TMPDIR to '
                f'a shorter one'
            )
        said = stack.enter_context(tempfile.TemporaryFile())
        command = ['qemu-nbd', f'--socket={path}', _name(node)]
        if is_writable:
            process = _start(command, 0, stderr=said)
        else:
            process = _start(
                [*command, '--read-only'], _READING_BYTES_MAX, stderr=said
            )
        try:
            disk = _connect(process, path, said)
            try:
                yield disk
            except nbd.ServerFailed as exc:
                raise nbd.ServerFailed(
                    f'{exc}{_reason(process, said)}'
                ) from exc
            finally:
                disk.close()
            # It ends with its only client, and closes the image before.
            if process.wait(_END_SECONDS_MAX):
                raise exceptions.StoreError(
                    f'qemu-nbd failed at its end{_reason(process, said)}'
                )
        finally:
            process.kill()
            process.wait()


def _reason(process: 'subprocess.Popen[bytes]', said: IO[bytes]) -> str:
    """How it ended, if it did."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        status = process.wait(1)
        if status < 0:
            return f', killed by signal {-status}: {_last_line(said)}'
        return f': {_last_line(said)}'
    return ''


#: Its socket is there before it has opened the image, if it can.
_NOT_YET = (FileNotFoundError, ConnectionRefusedError, nbd.ServerFailed)


def _connect(
    process: 'subprocess.Popen[bytes]', path: str, said: IO[bytes]
) -> nbd.Disk:
    deadline = time.monotonic() + _START_SECONDS_MAX
    while True:
        try:
            return nbd.Disk(path)
        except _NOT_YET as exc:
            if process.poll() is not None:
                raise exceptions.InvalidConfiguration(
                    f'qemu-nbd: {_last_line(said)}'
                ) from exc
            if time.monotonic() > deadline:
                raise exceptions.StoreError(
                    f'qemu-nbd did not start within {_START_SECONDS_MAX} s'
                ) from exc
            time.sleep(0.01)


@contextlib.contextmanager
def _extents(
    node: dict[str, Any], end_bytes: int | None
) -> Iterator[Iterator[tuple[int, bool]]]:
    """Ends and whether it is a hole; neighbours of one kind are joined.

    :param end_bytes: of the image's file, where its extents have to end
    """
    with tempfile.TemporaryFile() as said:
        process = _start(
            ['qemu-img', 'map', '--output=json', _name(node)],
            _LOOKING_BYTES_MAX,
            stdout=subprocess.PIPE,
            stderr=said,
        )
        try:
            yield _joined(process, said, node, end_bytes)
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def _joined(
    process: 'subprocess.Popen[bytes]',
    said: IO[bytes],
    node: dict[str, Any],
    end_bytes: int | None,
) -> Iterator[tuple[int, bool]]:
    end, is_hole = 0, False
    # One object a line, in one list: never all of it at once.
    for line in process.stdout or ():
        text = line.strip().strip(b'[],')
        if not text:
            continue
        found = json.loads(text)
        inside = found.get('offset', 0) + found['length']
        if found['data'] and end_bytes is not None and inside > end_bytes:
            raise _damaged(
                node['file']['filename'],
                f'it ends at {end_bytes} bytes and needs {inside}',
            )
        if end and found['zero'] != is_hole:
            yield end, is_hole
        end, is_hole = found['start'] + found['length'], found['zero']
    if process.wait():
        raise exceptions.StoreError(f'qemu-img map: {_last_line(said)}')
    if end:
        yield end, is_hole


def _pieces(
    disk: nbd.Disk, extents: Iterator[tuple[int, bool]]
) -> Iterator[importing.Piece]:
    offset = 0
    for end, is_hole in extents:
        if is_hole:
            yield importing.Hole(end - offset)
        else:
            yield from disk.read(
                (at, min(nbd.PIECE_BYTES, end - at))
                for at in range(offset, end, nbd.PIECE_BYTES)
            )
        offset = end
    if offset != disk.size_bytes:
        raise exceptions.StoreError(
            f'qemu-img map told {offset} of {disk.size_bytes} bytes'
        )


def _node(path: str, driver: str) -> dict[str, Any]:
    """No name is ever taken for a protocol or an option, nor probed."""
    node: dict[str, Any] = {
        'driver': driver,
        'file': {'driver': 'file', 'filename': os.path.abspath(path)},
    }
    if driver == 'qcow2':
        node['backing'] = None
    return node


def _name(node: dict[str, Any]) -> str:
    return f'json:{json.dumps(node)}'


def _run(*arguments: str) -> str:
    with tempfile.TemporaryFile() as said:
        process = _start(
            ['qemu-img', *arguments],
            _LOOKING_BYTES_MAX,
            stdout=subprocess.PIPE,
            stderr=said,
        )
        output, _ = process.communicate()
        if process.returncode:
            raise exceptions.InvalidConfiguration(
                f'qemu-img {arguments[0]}: {_last_line(said)}'
            )
    return output.decode()


def _start(
    command: list[str], addresses_bytes_max: int, **files: Any
) -> 'subprocess.Popen[bytes]':
    """:param addresses_bytes_max: 0: no limit"""
    if shutil.which(command[0]) is None:
        raise exceptions.InvalidConfiguration(f'{command[0]} {_MISSING}')
    if addresses_bytes_max:
        # Before the first byte of an image that may be hostile is read.
        command = ['prlimit', f'--as={addresses_bytes_max}', '--', *command]
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        **{'stdout': subprocess.DEVNULL, **files},
    )


def _last_line(said: IO[bytes]) -> str:
    said.seek(0)
    lines = said.read().decode(errors='replace').strip().splitlines()
    return lines[-1].partition(': ')[2] or lines[-1] if lines else 'it failed'
