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
import argparse
import os
import sys
from typing import TYPE_CHECKING, Any

from lazyblob import exceptions
from nova_lazyimage.cmd import console

if TYPE_CHECKING:
    from lazyblob import exporting
    from lazyblob import reader


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        'export',
        help='write a version as a raw or qcow2 file',
        description='Write a version as a sparse raw file, or as qcow2 by '
        'way of qemu-nbd, without a temporary copy. The file appears when '
        'it is whole and synced. Standard output gets raw bytes, zeros for '
        'holes.',
    )
    parser.add_argument('name', metavar='NAME[@VERSION]')
    parser.add_argument('file', metavar='FILE', help='"-": standard output')
    parser.add_argument(
        '--format',
        choices=('raw', 'qcow2'),
        default='raw',
        dest='target_format',
        help='format of FILE (default: raw)',
    )
    parser.add_argument(
        '-c',
        '--compress',
        action='store_true',
        help='compress its clusters (qcow2 only)',
    )
    parser.add_argument(
        '--force', action='store_true', help='replace FILE if it is there'
    )
    console.add_format(parser)
    console.teach(
        parser,
        'lazyimage export debian@1 first.raw',
        'lazyimage export debian debian.qcow2 --format qcow2 -c',
        'lazyimage export debian - | gzip > debian.gz',
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    _check(arguments)
    repo = console.connect(arguments)
    blob, version = console.find(repo, arguments.name)
    source = repo.open(blob.id, version.number)
    with console.Progress('exporting', version.size_bytes) as progress:
        _export(arguments, source, progress)
    if arguments.output_format == 'json':
        # People see the file.
        console.show_fields(
            arguments,
            {
                'id': blob.id,
                'version': version.number,
                'size_bytes': version.size_bytes,
                'file': arguments.file,
                'format': arguments.target_format,
            },
        )


def _check(arguments: argparse.Namespace) -> None:
    """What contradicts itself, before anything is done."""
    if arguments.compress and arguments.target_format != 'qcow2':
        raise exceptions.InvalidConfiguration(
            '--compress is for "--format qcow2"; for a compressed raw disk '
            'pipe "-" into a program that compresses'
        )
    if arguments.file != '-':
        if os.path.lexists(arguments.file) and not arguments.force:
            raise exceptions.InvalidConfiguration(
                f'"{arguments.file}" is there already; choose another name, '
                f'or give --force'
            )
        return
    if arguments.target_format != 'raw':
        raise exceptions.InvalidConfiguration(
            f'"--format {arguments.target_format}" cannot be written to '
            f'standard output; give a file'
        )
    if arguments.output_format == 'json':
        raise exceptions.InvalidConfiguration(
            '--json and the disk cannot both be written to standard output; '
            'leave one of them out'
        )
    if sys.stdout.isatty():
        raise exceptions.InvalidConfiguration(
            'standard output is a terminal; give a file, or a pipe'
        )


def _export(
    arguments: argparse.Namespace,
    source: 'reader.Reader',
    progress: 'exporting.Progress',
) -> None:
    from lazyblob import exporting

    if arguments.file == '-':
        exporting.export_to_pipe(source, sys.stdout.buffer, progress=progress)
    elif arguments.target_format == 'raw':
        exporting.export(source, arguments.file, progress=progress)
    else:
        from nova_lazyimage.cmd import qemu_img

        with exporting.appearing(arguments.file) as partial:
            qemu_img.make_qcow2(
                str(partial),
                source.size_bytes,
                exporting.data_of(
                    source,
                    unit_bytes=qemu_img.CLUSTER_BYTES,
                    progress=progress,
                ),
                is_compressed=arguments.compress,
            )
