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
"""``lazyimage grow``: make an attached disk larger."""

import argparse
from typing import Any

from nova_lazyimage.cmd import console
from nova_lazyimage.cmd import disks


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        'grow',
        help='make an attached disk larger',
        description='Make an attached disk larger, also while it is used: '
        'who has it open sees the new size, and zeros there. A disk never '
        'shrinks.',
    )
    parser.add_argument('disk', metavar='DISK', help='as it was attached')
    parser.add_argument('size', type=int, metavar='BYTES', help='its new size')
    disks.add_arguments(parser)
    console.add_format(parser)
    console.teach(
        parser,
        'lazyimage grow try 21474836480',
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    key = disks.key(arguments.disk)
    with disks.agent_errors():
        mirror = disks.Place(arguments).client.grow(*key, arguments.size)
    console.show_fields(
        arguments,
        {'path': mirror['path'], 'size_bytes': mirror['size_bytes']},
    )
