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
"""``lazyimage detach``: give up an attached disk."""

import argparse
from typing import Any

from lazyblob import exceptions
from nova_lazyimage.agent import client
from nova_lazyimage.cmd import console
from nova_lazyimage.cmd import disks


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        'detach',
        help='give up an attached disk',
        description='Give up an attached disk. A stand-alone agent ends '
        'with its last disk.',
    )
    parser.add_argument('disk', metavar='DISK', help='as it was attached')
    parser.add_argument(
        '--discard',
        action='store_true',
        help='also if it holds what was never committed',
    )
    disks.add_arguments(parser)
    console.add_format(parser)
    console.teach(
        parser,
        'lazyimage detach try',
        'lazyimage detach try --discard',
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    key = disks.key(arguments.disk)
    place = disks.Place(arguments)
    with disks.agent_errors():
        try:
            mirror = place.client.mirror(*key)
        except client.NotFound:
            raise exceptions.NotFound(
                f'no disk "{arguments.disk}" is attached; "lazyimage status" '
                'lists them'
            ) from None
        if mirror['dirty_bytes'] and not arguments.discard:
            raise exceptions.Conflict(
                f'disk "{arguments.disk}" holds '
                f'{console.readable(mirror["dirty_bytes"])} that were never '
                'committed; commit first, or give --discard'
            )
        place.client.release(*key)
        place.stop_if_idle()
    if arguments.output_format == 'json':
        # People see that nothing went wrong.
        console.show_fields(arguments, {'disk': arguments.disk})
