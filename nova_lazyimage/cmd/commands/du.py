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
"""``lazyimage du``: what versions take, alone and together."""

import argparse
import dataclasses
import json
from typing import Any

from nova_lazyimage.cmd import console

COLUMNS = (
    'name',
    'version',
    'logical_bytes',
    'mapped_bytes',
    'stored_bytes',
    'unique_bytes',
    'shared_bytes',
)


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        'du',
        help='what versions take, alone and together',
        description='What every version takes. LOGICAL is the disk\'s size, '
        'MAPPED what of it is no hole, STORED what its chunks and manifest '
        'take in the store, UNIQUE what deleting this version alone would '
        'free once it is collected, SHARED what others refer to as well. '
        'Then the whole store, and what no version refers to. All manifests '
        'are walked, equal parts once, and the store is listed.',
    )
    parser.add_argument(
        'names',
        metavar='NAME',
        nargs='*',
        help='tell only of these blobs; still counted against all others',
    )
    console.add_format(parser)
    console.teach(
        parser,
        'lazyimage du',
        'lazyimage du debian --json',
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    repo = console.connect(arguments)
    wanted = {repo.catalog.find(name).id for name in arguments.names}
    names = {
        blob.id: blob.name or blob.id for blob in repo.catalog.list_blobs()
    }
    with console.Progress('walking', None, 'versions') as progress:
        found = repo.account(progress)
    rows = [
        {
            'name': names.get(usage.blob_id, usage.blob_id),
            'version': usage.number,
            **dataclasses.asdict(usage),
        }
        for usage in found.versions
        if not wanted or usage.blob_id in wanted
    ]
    totals = dataclasses.asdict(found)
    del totals['versions']
    if arguments.output_format == 'json':
        print(json.dumps({**totals, 'versions': rows}))
        return
    console.show_rows(arguments, COLUMNS, rows)
    print()
    console.show_fields(arguments, totals)
