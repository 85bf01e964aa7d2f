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
"""``lazyimage delete``: drop a blob, or one of its versions."""

import argparse
import secrets
from typing import Any

from nova_lazyimage.cmd import console


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        'delete',
        help='delete a blob, or one of its versions',
        description='Delete a blob, or with NAME@VERSION one of its '
        'versions. What others share stays.',
    )
    parser.add_argument('name', metavar='NAME[@VERSION]')
    parser.add_argument(
        '--force',
        action='store_true',
        help='also if a host has it attached: that host can no longer '
        'commit, and what it did not commit is lost',
    )
    console.add_format(parser)
    console.teach(
        parser,
        'lazyimage delete debian@2',
        'lazyimage delete debian',
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    repo = console.connect(arguments)
    name, number = console.split(arguments.name)
    blob = repo.catalog.find(name)
    if number is not None:
        repo.catalog.delete_version(blob.id, number)
        tell(arguments, blob.id, number)
        return
    secret = ''
    if arguments.force:
        # Take the blob over: whoever had it is a stale writer from now on.
        secret = secrets.token_hex(16)
        repo.catalog.claim(blob.id, secret)
    repo.delete(blob.id, secret=secret)
    tell(arguments, blob.id, None)


def tell(
    arguments: argparse.Namespace, blob_id: str, version: int | None
) -> None:
    """Only to programs; people see that nothing went wrong."""
    if arguments.output_format == 'json':
        console.show_fields(arguments, {'id': blob_id, 'version': version})
