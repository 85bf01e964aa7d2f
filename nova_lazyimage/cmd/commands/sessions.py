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
"""``lazyimage sessions``: writers at work, and what dead ones left open."""

import argparse
import dataclasses
from typing import Any

from nova_lazyimage.cmd import console

COLUMNS = ('id', 'owner', 'started_at')


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        'sessions',
        help='list the writers that have not ended',
        description='List the writers that have begun and not ended, the '
        'oldest first; OWNER is host:process. While a session is open, '
        'nothing that was there at its begin is collected. End one only if '
        'its owner is dead: a commit that still runs would fail and have to '
        'be repeated.',
    )
    parser.add_argument(
        '--end', metavar='ID', action='append', default=[], help='end it'
    )
    console.add_format(parser)
    console.teach(
        parser,
        'lazyimage sessions',
        'lazyimage sessions --end 7f1c2d9be0a54c31',
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    catalog = console.connect(arguments).catalog
    for session_id in arguments.end:
        catalog.end_session(session_id)
    rows = [dataclasses.asdict(session) for session in catalog.sessions()]
    console.show_rows(arguments, COLUMNS, rows)
