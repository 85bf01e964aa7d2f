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
"""``python -m cloud``: the all-in-one's services by hand."""

from __future__ import annotations

import argparse
import sys
import time

from cloud import settings
from cloud.bringup import Cloud
from cloud.process import ServiceError


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='cloud', description=__doc__)
    commands = parser.add_subparsers(dest='command', required=True)
    up = commands.add_parser('up', help='start every service')
    up.add_argument('--flavour', choices=settings.FLAVOURS, default='lazy')
    up.add_argument(
        '--engine',
        choices=settings.ENGINES,
        help='where chunks are kept (default: as before, or file)',
    )
    commands.add_parser('down', help='stop every service')
    commands.add_parser('status', help='which services run')
    compute = commands.add_parser(
        'compute', help="restart nova-compute with a flavour's driver"
    )
    compute.add_argument('flavour', choices=settings.FLAVOURS)
    for name in ('start', 'stop', 'restart', 'kill'):
        one = commands.add_parser(name, help=f'{name} one service')
        one.add_argument('service')
    return parser.parse_args()


def main() -> int:
    options = arguments()
    begin = time.monotonic()
    flavour = options.flavour if options.command == 'up' else None
    try:
        cloud = Cloud(flavour, getattr(options, 'engine', None))
        if options.command == 'up':
            cloud.up()
        elif options.command == 'down':
            cloud.down()
        elif options.command == 'status':
            return status(cloud)
        elif options.command == 'compute':
            cloud.compute_flavour(options.flavour)
        elif options.command == 'restart':
            cloud.restart(options.service)
        else:
            getattr(cloud[options.service], options.command)()
            if options.command == 'start':
                cloud[options.service].wait_ready()
    except ServiceError as exc:
        print(f'cloud: {exc}', file=sys.stderr)
        return 1
    print(f'{options.command}: {time.monotonic() - begin:.1f} s')
    return 0


def status(cloud: Cloud) -> int:
    missing = 0
    for service in cloud.services.values():
        pid = service.pid()
        missing += pid is None
        print(f'{service.name:<22} {pid or "not running"}')
    return 1 if missing else 0


if __name__ == '__main__':
    sys.exit(main())
