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
"""``lazyimage import``: a file becomes a blob.

The bytes of a disk may be the guest's own, so nothing is converted behind the
user's back: what is not said to be another format is raw, and refused if it
looks like another one until one says which it is.
"""

import argparse
import contextlib
import io
import os
import stat
import sys
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from lazyblob import exceptions
from nova_lazyimage.cmd import console
from nova_lazyimage.cmd import inspection

if TYPE_CHECKING:
    from lazyblob import importing


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        'import',
        help='store a file as a new blob',
        description='Store a file as a new blob. Holes of a sparse file are '
        'not read; chunks that the repository has are not stored again. '
        'Other formats than raw are converted on the way, by qemu-nbd and '
        'without a temporary copy, after they were found to point at no '
        'other file.',
    )
    parser.add_argument('file', metavar='FILE', help='"-": standard input')
    parser.add_argument('--name', required=True, help='name of the blob')
    parser.add_argument('--id', help='id of the blob (default: a random one)')
    parser.add_argument(
        '--project', default='', help='owning project (default: none)'
    )
    parser.add_argument(
        '--format',
        choices=('raw', *inspection.DRIVERS, 'auto'),
        dest='source_format',
        help='format of FILE; "auto" goes by its first bytes, which a guest '
        'may have written if it is a raw disk (default: raw, but a file that '
        'looks like another one is refused)',
    )
    parser.add_argument(
        '--chunk-size',
        type=int,
        metavar='BYTES',
        help='a power of two from 4096 to 4194304 (default: 524288)',
    )
    parser.add_argument(
        '--threads',
        type=console.count,
        metavar='N',
        help='that hash, compress and store (default: one a processor; more '
        'to an object gateway)',
    )
    console.add_format(parser)
    console.teach(
        parser,
        'lazyimage import debian.raw --name debian',
        'lazyimage import server.qcow2 --format qcow2 --name server',
        'lazyimage import appliance.vmdk --format auto --name appliance',
        'zcat disk.gz | lazyimage import - --name disk',
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from lazyblob import chunk
    from lazyblob import commit

    repo = console.connect(arguments)
    statistics = commit.Statistics()
    with _opened(arguments) as (total, stream):
        with console.Progress('importing', total) as progress:
            version = repo.create(
                stream,
                blob_id=arguments.id or str(uuid.uuid4()),
                name=arguments.name,
                project_id=arguments.project,
                chunk_size_bytes=(
                    arguments.chunk_size or chunk.SIZE_BYTES_DEFAULT
                ),
                threads=_threads(arguments.threads, repo),
                progress=progress,
                statistics=statistics,
            )
    console.show_fields(
        arguments,
        {
            'name': arguments.name,
            'id': version.blob_id,
            'version': version.number,
            'size_bytes': version.size_bytes,
            'hole_bytes': statistics.zero_bytes,
            'shared_bytes': statistics.known_bytes,
            'new_bytes': statistics.stored_bytes,
            'written_bytes': statistics.written_bytes,
        },
    )


def _threads(wanted: int | None, repo: Any) -> int | None:
    """A gateway is waited for; elsewhere processors are what is short."""
    if wanted is not None or repo.store.is_remote:
        return wanted
    return os.cpu_count()


@contextlib.contextmanager
def _opened(
    arguments: argparse.Namespace,
) -> Iterator[tuple[int | None, 'importing.Stream']]:
    """The source's size, if it is known, and its content."""
    from lazyblob import importing

    path, given = arguments.file, arguments.source_format
    with contextlib.ExitStack() as stack:
        source: BinaryIO = sys.stdin.buffer
        if path != '-':
            source = stack.enter_context(open(path, 'rb'))
        status = os.fstat(source.fileno())
        if not stat.S_ISREG(status.st_mode):
            _check_pipe(path, given, source)
            yield None, importing.read_pipe(source)
            return
        wanted = _format(path, given, source)
        if wanted == 'raw':
            source.seek(0)
            yield status.st_size, importing.read_file(source)
            return
        from nova_lazyimage.cmd import qemu_img

        inspection.check(path, wanted)
        yield stack.enter_context(qemu_img.content(path, wanted))


def _format(path: str, given: str | None, source: BinaryIO) -> str:
    """What to take a file for."""
    if given == 'raw':
        return 'raw'
    found = inspection.detect(source, path)
    if found in inspection.RAW:
        found = 'raw'
    if given is None and found != 'raw':
        raise exceptions.InvalidConfiguration(
            f'"{path}" looks like a {found} image; say "--format {found}" to '
            f'convert it, or "--format raw" if it is a raw disk all the same'
        )
    if given not in (None, 'auto', found):
        raise exceptions.InvalidConfiguration(
            f'"{path}" is no {given} image, but looks like {found}; correct '
            f'"--format {given}"'
        )
    if found != 'raw' and found not in inspection.DRIVERS:
        raise inspection.refuse(path, found)
    return found


def _check_pipe(path: str, given: str | None, source: BinaryIO) -> None:
    """Of what comes only once nothing but the first bytes can be looked at."""
    if given not in (None, 'raw'):
        raise exceptions.InvalidConfiguration(
            f'"{path}" is no regular file and "--format {given}" needs one; '
            f'only raw disks can be read from pipes and devices'
        )
    if given is None and isinstance(source, io.BufferedReader):
        _format(path, None, io.BytesIO(source.peek()))
