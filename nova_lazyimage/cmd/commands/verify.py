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
"""``lazyimage verify``: read everything back and check every digest."""

import argparse
import sys
from typing import TYPE_CHECKING, Any

from lazyblob import exceptions
from nova_lazyimage.cmd import console

if TYPE_CHECKING:
    from lazyblob import repository
    from lazyblob.catalog import api

COLUMNS = ('name', 'version', 'chunks', 'problems')


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        'verify',
        help='read everything back and check every digest',
        description='Read a version (or every version of every blob) back '
        'from the chunk store and check every digest. What is damaged is '
        'told on standard error, and the exit status is 1.',
    )
    parser.add_argument('name', metavar='NAME[@VERSION]', nargs='?')
    console.add_format(parser)
    console.teach(
        parser,
        'lazyimage verify debian@3',
        'lazyimage verify --json',
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    repo = console.connect(arguments)
    if arguments.name:
        blob, version = console.find(repo, arguments.name)
        wanted = [(blob, version)]
    else:
        wanted = [
            (blob, version)
            for blob in repo.catalog.list_blobs()
            for version in repo.catalog.versions(blob.id)
        ]
    rows = [_verify(repo, blob, version) for blob, version in wanted]
    console.show_rows(arguments, COLUMNS, rows)
    return int(any(row['problems'] for row in rows))


def _verify(
    repo: 'repository.Repository', blob: 'api.Blob', version: 'api.Version'
) -> dict[str, Any]:
    name = blob.name or blob.id
    chunk_size = blob.chunk_size_bytes
    chunk_count, problems = 0, 0
    with console.Progress(f'verifying {name}', None) as progress:
        try:
            report = repo.verify(
                blob.id,
                version.number,
                lambda count: progress(count * chunk_size),
            )
        except (exceptions.ChunkCorrupt, exceptions.NotFound) as exc:
            # Of the manifest: nothing of this version can be read.
            problems = 1
            print(f'{name}@{version.number}: {exc}', file=sys.stderr)
        else:
            chunk_count, problems = report.chunk_count, len(report.problems)
            for found in report.problems:
                print(
                    f'{name}@{version.number}: bytes '
                    f'{found.index * chunk_size} to '
                    f'{(found.index + 1) * chunk_size - 1}: {found.reason}',
                    file=sys.stderr,
                )
    return {
        'name': name,
        'version': version.number,
        'chunks': chunk_count,
        'problems': problems,
    }
