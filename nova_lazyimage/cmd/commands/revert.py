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
"""``lazyimage revert``: an attached disk is a version of its blob again."""

import argparse
from typing import Any

from lazyblob import exceptions
from nova_lazyimage.cmd import console
from nova_lazyimage.cmd import disks


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        'revert',
        help='take an attached disk back to a version of its blob',
        description='Take an attached disk back to a version of its blob; '
        'what was written since is lost. The disk must not be open, and '
        'keeps its size. No version goes: the next commit follows the '
        'newest.',
    )
    parser.add_argument('disk', metavar='DISK', help='as it was attached')
    parser.add_argument(
        '--version',
        type=int,
        metavar='N',
        help='default: the one of its last commit, or of its attach',
    )
    parser.add_argument(
        '--discard',
        action='store_true',
        help='also if it holds what was never committed',
    )
    disks.add_arguments(parser)
    console.add_format(parser)
    console.teach(
        parser,
        'lazyimage revert try',
        'lazyimage revert try --version 1 --discard',
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    key = disks.key(arguments.disk)
    agent = disks.Place(arguments).client
    with disks.agent_errors():
        mirror = agent.mirror(*key)
        if mirror['dirty_bytes'] and not arguments.discard:
            raise exceptions.Conflict(
                f'disk "{arguments.disk}" holds '
                f'{console.readable(mirror["dirty_bytes"])} that were never '
                'committed; commit first, or give --discard'
            )
        version = arguments.version or mirror['parent']
        mirror = agent.revert(*key, version)
    console.show_fields(
        arguments,
        {'path': mirror['path'], 'version': mirror['parent']},
    )
