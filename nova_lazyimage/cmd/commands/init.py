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
import contextlib
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
        help='who shares equal chunks: everybody, or each project for '
        'itself, which leaks nothing between them by timing (default: '
        'repository; cannot be changed later)',
    )
    parser.add_argument(
        '--chunk-store-moved',
        action='store_true',
        help='the chunk store of a repository that exists has another URL '
        'from now on: it got a disk more, or all of it was copied. Some '
        'versions are looked for there first',
    )
    parser.add_argument(
        '--allow-missing',
        action='store_true',
        help='with --chunk-store-moved: do not look; a part of the store is '
        'lost, as with a disk that was given up',
    )
    parser.add_argument(
        '--catalog-from',
        metavar='FILE|URL',
        help='move the catalog here from another database: the one of '
        '[repository] in a configuration file, or a URL without a password. '
        'Ids, versions, attachments and what Glance knows stay valid. Stop '
        'every service first, and do not use the old one any more',
    )
    console.add_format(parser)
    console.teach(
        parser,
        'lazyimage --repository file:///var/lib/images init',
        'lazyimage --config-file new.conf init --chunk-store-moved',
        'lazyimage --config-file new.conf init --catalog-from old.conf',
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from lazyblob import plugins
    from lazyblob import repository

    where = console.place(arguments)
    scope = arguments.dedupe_scope or 'repository'
    if arguments.catalog_from:
        _move_catalog(arguments.catalog_from, where.catalog)
        with contextlib.closing(plugins.catalog(where.catalog)) as moved:
            scope = arguments.dedupe_scope or moved.repository().dedupe_scope
    with console.Progress('looking', None, 'versions') as progress:
        made = repository.initialise(
            where.chunk_store,
            where.catalog,
            dedupe_scope=scope,
            store_settings=where.store_settings,
            is_moved=arguments.chunk_store_moved,
            may_lack=arguments.allow_missing,
            progress=progress,
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


def _move_catalog(source: str, target: str) -> None:
    from lazyblob.catalog import moving

    if '://' not in source:
        source = console.place_of_file(source).catalog
    with console.Progress('moving', None, 'rows') as progress:
        moving.move(source, target, progress)
