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
"""``lazyimage export``: a version becomes a raw file."""

import argparse
import os
import sys
from typing import Any

from lazyblob import exceptions
from nova_lazyimage.cmd import console


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        'export',
        help='write a version as a sparse raw file',
        description='Write a version as a sparse raw file. The file appears '
        'when it is whole.',
    )
    parser.add_argument('name', metavar='NAME[@VERSION]')
    parser.add_argument('file', metavar='FILE', help='"-": standard output')
    parser.add_argument(
        '--force', action='store_true', help='replace FILE if it is there'
    )
    console.add_format(parser)
    console.teach(
        parser,
        'lazyimage export debian@1 first.raw',
        'lazyimage export debian - | gzip > debian.gz',
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    if os.path.exists(arguments.file) and not arguments.force:
        raise exceptions.InvalidConfiguration(
            f'"{arguments.file}" is there already; choose another name, or '
            f'give --force'
        )
    repo = console.connect(arguments)
    blob, version = console.find(repo, arguments.name)
    if arguments.file == '-':
        for piece in repo.open(blob.id, version.number).stream():
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
        return
    with console.Progress('exporting', version.size_bytes) as progress:
        repo.export(blob.id, version.number, arguments.file, progress)
    if arguments.output_format == 'json':
        # People see the file.
        console.show_fields(
            arguments,
            {
                'id': blob.id,
                'version': version.number,
                'size_bytes': version.size_bytes,
                'file': arguments.file,
            },
        )
