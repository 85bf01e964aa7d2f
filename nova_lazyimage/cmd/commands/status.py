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
"""``lazyimage status``: the agent and its disks."""

import argparse
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
    'path',
)


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        'status',
        help='list the attached disks',
        description='List the disks that the agent serves.',
    )
    disks.add_arguments(parser)
    console.add_format(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    place = disks.Place(arguments)
    with disks.agent_errors():
        try:
            mirrors = place.client.mirrors()
        except client.AgentUnavailable:
            # A stand-alone agent ends with its last disk.
            if not place.stands_alone:
                raise
            mirrors = []
        console.show_rows(arguments, COLUMNS, mirrors)
