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
"""``lazyimage status``: the agent's disks, or all that is known of one."""

import argparse
import json
from typing import Any

from nova_lazyimage.agent import client
from nova_lazyimage.cmd import console
from nova_lazyimage.cmd import disks

COLUMNS = (
    'disk',
    'state',
    'size_bytes',
    'local_bytes',
    'dirty_bytes',
    'fetched_bytes',
    'hit_rate',
    'waiting',
    'path',
)
LATENCIES = (
    'operation',
    'source',
    'requests',
    'mean_seconds',
    'p50_seconds',
    'p99_seconds',
)
WAITS = ('operation', 'offset', 'bytes', 'chunk', 'reason', 'seconds')


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        'status',
        help='list the attached disks, or show one',
        description='List the disks that the agent serves. Of one disk also '
        'show how long its requests took, by where their bytes came from, '
        'and which of them wait, the oldest first, and for what.',
    )
    parser.add_argument(
        'disk',
        metavar='DISK',
        nargs='?',
        help='as it was attached, or SERVER/DISK: the server\'s UUID and the '
        'disk\'s name',
    )
    parser.add_argument(
        '--cache',
        action='store_true',
        help="show the host's chunk cache instead",
    )
    disks.add_arguments(parser)
    console.add_format(parser)
    console.teach(
        parser,
        'lazyimage status',
        'lazyimage status try --json | jq .waits',
        'lazyimage status --cache',
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    place = disks.Place(arguments)
    with disks.agent_errors():
        if arguments.disk:
            show(arguments, place.client.mirror(*key(arguments.disk)))
            return
        if arguments.cache:
            cache = place.client.status()['cache']
            console.show_fields(arguments, cache)
            return
        try:
            mirrors = place.client.mirrors()
        except client.AgentUnavailable:
            # A stand-alone agent ends with its last disk.
            if not place.stands_alone:
                raise
            mirrors = []
        console.show_rows(arguments, COLUMNS, mirrors)


def key(name: str) -> tuple[str, str]:
    """What the agent calls it."""
    server, separator, disk = name.partition('/')
    return (server, disk) if separator else disks.key(name)


def show(arguments: argparse.Namespace, mirror: dict[str, Any]) -> None:
    """One disk, for people or whole."""
    if arguments.output_format == 'json':
        print(json.dumps(mirror))
        return
    latencies, waits = mirror.pop('latencies'), mirror.pop('waits')
    console.show_fields(arguments, mirror)
    for columns, rows in ((LATENCIES, latencies), (WAITS, waits)):
        if rows:
            print()
            console.show_rows(arguments, columns, rows)
