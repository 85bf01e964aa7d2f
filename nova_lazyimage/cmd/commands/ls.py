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
"""``lazyimage ls``: the blobs."""

import argparse
from typing import TYPE_CHECKING, Any

from nova_lazyimage.cmd import console

if TYPE_CHECKING:
    from lazyblob.catalog import api

COLUMNS = ('name', 'id', 'kind', 'version', 'size_bytes', 'origin', 'created')


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        'ls', help='list the blobs', description='List the blobs.'
    )
    console.add_format(parser)
    console.teach(
        parser,
        'lazyimage ls',
        "lazyimage ls --json | jq -r '.[].name'",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from lazyblob import accounting

    catalog = console.connect(arguments).catalog
    # By pages: a question a blob takes long where there are many.
    newest: dict[str, api.Version] = {}
    with console.Progress('listing', None, 'versions') as progress:
        for count, found in enumerate(accounting.all_versions(catalog), 1):
            newest[found.blob_id] = found
            progress(count)
    rows = []
    for blob in catalog.list_blobs():
        version = newest.get(blob.id)
        if version is None:
            continue  # Left behind by an import that died at its end.
        origin = f'{blob.origin}@{blob.origin_version}' if blob.origin else ''
        rows.append(
            {
                'name': blob.name,
                'id': blob.id,
                'kind': str(blob.kind),
                'version': version.number,
                'size_bytes': version.size_bytes,
                'origin': origin,
                'created': blob.created_at,
            }
        )
    console.show_rows(arguments, COLUMNS, rows)
