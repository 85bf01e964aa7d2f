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
"""``lazyimage commit``: what a disk holds becomes a version."""

import argparse
import uuid
from typing import Any

from nova_lazyimage.cmd import console
from nova_lazyimage.cmd import disks


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        'commit',
        help='make a version of what an attached disk holds now',
        description='Make a version of what an attached disk holds now; it '
        'may be written meanwhile. Only chunks that changed are stored.',
    )
    parser.add_argument('disk', metavar='DISK', help='as it was attached')
    parser.add_argument(
        '--name', default='', help='also make a blob of this name from it'
    )
    parser.add_argument(
        '--timeout',
        type=float,
        default=3600.0,
        metavar='SECONDS',
        help='how long to wait for it (default: 3600)',
    )
    disks.add_arguments(parser)
    console.add_format(parser)
    console.teach(
        parser,
        'lazyimage commit try --name tried',
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    key = disks.key(arguments.disk)
    agent = disks.Place(arguments).client
    commit_id = str(uuid.uuid4())
    image_id = str(uuid.uuid4()) if arguments.name else None
    with disks.agent_errors():
        agent.sync(*key)
        sealed = agent.commit(
            *key,
            commit_id=commit_id,
            image_id=image_id,
            name=arguments.name,
        )
        with console.Progress('committing', sealed['total_bytes']) as show:
            done = agent.wait_for_commit(
                *key,
                commit_id,
                arguments.timeout,
                lambda state: show(state['committed_bytes']),
            )
    if image_id is not None:
        # No Glance will read it: it is what somebody asked for.
        console.connect(arguments).catalog.activate(image_id)
    console.show_fields(
        arguments,
        {
            'name': arguments.name,
            'id': image_id or done['blob_id'],
            'version': 1 if image_id else done['version'],
            'committed_bytes': done['committed_bytes'],
        },
    )
