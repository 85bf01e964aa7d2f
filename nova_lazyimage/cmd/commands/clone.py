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
"""``lazyimage clone``: a new blob from a version, at once."""

import argparse
import uuid
from typing import Any

from nova_lazyimage.cmd import console


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        'clone',
        help='make a blob that begins as a version of another',
        description='Make a blob that begins as a version of another and '
        'shares everything with it. Nothing is copied; either may be '
        'deleted without the other.',
    )
    parser.add_argument('source', metavar='NAME[@VERSION]')
    parser.add_argument('--name', required=True, help='name of the new blob')
    parser.add_argument('--id', help='its id (default: a random one)')
    parser.add_argument(
        '--project', help='owning project (default: the source\'s)'
    )
    parser.add_argument(
        '--size',
        type=int,
        metavar='BYTES',
        help='grow it at once (its version is 2 then); it cannot shrink',
    )
    console.add_format(parser)
    console.teach(
        parser,
        'lazyimage clone debian --name web',
        'lazyimage clone debian@1 --name web --size 21474836480',
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    repo = console.connect(arguments)
    blob, version = console.find(repo, arguments.source)
    project = arguments.project
    made = repo.clone(
        blob.id,
        version.number,
        blob_id=arguments.id or str(uuid.uuid4()),
        project_id=blob.project_id if project is None else project,
        name=arguments.name,
        size_bytes=arguments.size,
    )
    console.show_fields(
        arguments,
        {
            'name': arguments.name,
            'id': made.blob_id,
            'version': made.number,
            'size_bytes': made.size_bytes,
        },
    )
