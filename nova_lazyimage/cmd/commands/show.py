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
"""``lazyimage show``: a blob and its versions."""

import argparse
import dataclasses
import json
from typing import Any

from nova_lazyimage.cmd import console

COLUMNS = ('version', 'size_bytes', 'root', 'created')


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        'show',
        help='show a blob and its versions',
        description='Show a blob and its versions.',
    )
    parser.add_argument('name', metavar='NAME', help='a blob\'s name or id')
    console.add_format(parser)
    console.teach(
        parser,
        'lazyimage show debian',
        'lazyimage show debian --json | jq .versions',
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    catalog = console.connect(arguments).catalog
    blob = catalog.find(arguments.name)
    versions = [
        {
            'version': version.number,
            'size_bytes': version.size_bytes,
            'root': version.root,
            'created': version.created_at,
        }
        for version in catalog.versions(blob.id)
    ]
    fields = dataclasses.asdict(blob)
    fields.update(kind=str(blob.kind), state=str(blob.state))
    if arguments.output_format == 'json':
        print(json.dumps({**fields, 'versions': versions}))
        return
    console.show_fields(arguments, fields)
    print()
    console.show_rows(arguments, COLUMNS, versions)
