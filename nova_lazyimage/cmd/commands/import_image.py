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

The bytes of a disk may be the guest's own, so they are never probed behind
the user's back: what is not said to be another format is raw. Only a file
that opens like a qcow2 is refused until one says which it is.
"""

import argparse
import contextlib
import os
import stat
import sys
import uuid
from collections.abc import Iterator
from typing import Any, BinaryIO

from lazyblob import exceptions
from nova_lazyimage.cmd import console

_QCOW2_MAGIC = b'QFI\xfb'


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        'import',
        help='store a file as a new blob',
        description='Store a file as a new blob. Holes of a sparse file are '
        'not read; chunks that the repository has are not stored again.',
    )
    parser.add_argument('file', metavar='FILE', help='"-": standard input')
    parser.add_argument('--name', required=True, help='name of the blob')
    parser.add_argument('--id', help='id of the blob (default: a random one)')
    parser.add_argument(
        '--project', default='', help='owning project (default: none)'
    )
    parser.add_argument(
        '--format',
        choices=('raw', 'qcow2', 'auto'),
        dest='source_format',
        help='format of FILE; qcow2 is converted by qemu-img; "auto" asks '
        'qemu-img, which is wrong for a raw disk whose guest you do not '
        'trust (default: raw, but a file that opens like a qcow2 is refused)',
    )
    parser.add_argument(
        '--chunk-size',
        type=int,
        metavar='BYTES',
        help='a power of two from 4096 to 4194304 (default: 524288)',
    )
    parser.add_argument(
        '--threads',
        type=int,
        help='that hash, compress and store (default: one a processor; more '
        'to an object gateway)',
    )
    console.add_format(parser)
    console.teach(
        parser,
        'lazyimage import debian.raw --name debian',
        'lazyimage import server.qcow2 --format qcow2 --name server',
        'zcat disk.gz | lazyimage import - --name disk',
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from lazyblob import chunk
    from lazyblob import commit
    from lazyblob import importing

    repo = console.connect(arguments)
    statistics = commit.Statistics()
    with _opened(arguments) as source:
        status = os.fstat(source.fileno())
        is_file = stat.S_ISREG(status.st_mode)
        total = status.st_size if is_file else None
        stream: importing.Stream = (
            importing.read_file(source)
            if is_file
            else importing.read_pipe(source)
        )
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
    if wanted is not None:
        return max(1, wanted)
    return None if repo.store.is_remote else os.cpu_count()


@contextlib.contextmanager
def _opened(arguments: argparse.Namespace) -> Iterator[BinaryIO]:
    """The source as raw bytes."""
    source_format = arguments.source_format
    if arguments.file == '-':
        if source_format not in (None, 'raw'):
            raise exceptions.InvalidConfiguration(
                'standard input must be raw; give a file to convert'
            )
        yield sys.stdin.buffer
        return
    from nova_lazyimage.cmd import qemu_img

    with open(arguments.file, 'rb') as source:
        if source_format == 'auto':
            source_format = qemu_img.probe(arguments.file)
        elif source_format is None and source.peek(4)[:4] == _QCOW2_MAGIC:
            raise exceptions.InvalidConfiguration(
                f'"{arguments.file}" opens like a qcow2 file; say "--format '
                f'qcow2" to convert it, or "--format raw" if it is a raw '
                f'disk all the same'
            )
        if source_format in (None, 'raw'):
            yield source
            return
    with qemu_img.converted(arguments.file, source_format) as raw:
        yield raw
