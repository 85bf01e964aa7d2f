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
"""``lazyimage init``: make the repository."""

import argparse
from typing import Any

from nova_lazyimage.cmd import console


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        'init',
        help='make the repository, or upgrade its catalog',
        description='Make the chunk store\'s folders and the catalog\'s '
        'tables. On a repository that exists it brings the catalog to this '
        'release\'s schema and changes nothing else.',
    )
    parser.add_argument(
        '--dedupe-scope',
        choices=('repository', 'project'),
        default='repository',
        help='who shares equal chunks: everybody, or each project for '
        'itself, which leaks nothing between them by timing (default: '
        'repository; cannot be changed later)',
    )
    parser.add_argument(
        '--chunk-store-moved',
        action='store_true',
        help='the chunk store of a repository that exists has another URL '
        'from now on: it got a disk more, or all of it was copied',
    )
    console.add_format(parser)
    console.teach(
        parser,
        'lazyimage --repository file:///var/lib/images init',
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from lazyblob import repository

    where = console.place(arguments)
    made = repository.initialise(
        where.chunk_store,
        where.catalog,
        dedupe_scope=arguments.dedupe_scope,
        store_settings=where.store_settings,
        is_moved=arguments.chunk_store_moved,
    )
    console.show_fields(
        arguments,
        {
            'uuid': made.info.uuid,
            'chunk_store': made.info.chunk_store,
            'dedupe_scope': made.info.dedupe_scope,
            'format_version': made.info.format_version,
        },
    )
