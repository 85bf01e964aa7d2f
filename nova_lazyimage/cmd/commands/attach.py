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
"""``lazyimage attach``: a version becomes a lazily mirrored, writable disk."""

import argparse
import json
from typing import Any

from nova_lazyimage.cmd import console
from nova_lazyimage.cmd import disks


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        'attach',
        help='make a writable disk of a blob; prints its path',
        description='Make a writable disk of a blob, at once: a raw file '
        'whose chunks are fetched when they are first read, and whose writes '
        'stay on this host until "lazyimage commit". Prints its path. '
        'Repeating it answers the same disk.',
    )
    parser.add_argument('name', metavar='NAME[@VERSION]')
    parser.add_argument(
        '--as',
        dest='disk',
        metavar='DISK',
        help='name the disk, so that a blob may be attached several times, '
        'each time as a clone (default: NAME)',
    )
    parser.add_argument(
        '--clone',
        action='store_true',
        help='commit to a clone and never to NAME; so does NAME@VERSION',
    )
    parser.add_argument(
        '--size', type=int, metavar='BYTES', help='grow the disk to it'
    )
    disks.add_arguments(parser)
    console.add_format(parser)
    console.teach(
        parser,
        'disk=$(lazyimage attach debian --as try)',
        'lazyimage attach debian@1 --clone --size 21474836480',
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    repo = console.connect(arguments)
    blob, version = console.find(repo, arguments.name)
    name, number = console.split(arguments.name)
    place = disks.Place(arguments)
    clone = arguments.clone or arguments.disk or number is not None
    source: dict[str, Any] = {'blob': blob.id}
    if clone:
        source = {'clone_blob': blob.id, 'clone_version': version.number}
    with disks.agent_errors():
        mirror = place.running().attach(
            *disks.key(arguments.disk or name),
            size_bytes=arguments.size,
            project_id=blob.project_id,
            **source,
        )
    if arguments.output_format == 'json':
        print(json.dumps(mirror))
    else:
        print(mirror['path'])
