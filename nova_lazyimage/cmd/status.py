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
"""``lazyimage-status check``: what is wrong on this host, a line each.

Exit status: 0 all is well, 1 only warnings, 2 something must be done. Files
that are not there are not looked at unless they were named: a controller has
no nova-compute, a compute node no glance-api.
"""

import argparse
import os
import pathlib
import sys
from collections.abc import Sequence

from nova_lazyimage.agent import checks
from nova_lazyimage.agent import configurations

LAZYIMAGE_CONF = '/etc/lazyimage/lazyimage.conf'
NOVA_CONF = ('/etc/nova/nova.conf', '/etc/nova/nova-compute.conf')
GLANCE_CONF = ('/etc/glance/glance-api.conf',)
_SHOWN = {
    checks.Level.GOOD: 'ok',
    checks.Level.WARNING: 'warning',
    checks.Level.FAILURE: 'FAILURE',
}
DEFAULTS = {
    'mount_root': '/var/lib/lazyimage/mnt',
    'run_directory': '/run/lazyimage',
    'socket': '/run/lazyimage/agent.sock',
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog='lazyimage-status',
        description='Say what is wrong on this host, a line each.',
    )
    commands = made.add_subparsers(dest='command', required=True)
    check = commands.add_parser(
        'check', help='look at kernel, mount, socket and configuration'
    )
    check.add_argument(
        '--config-file',
        metavar='FILE',
        help=f'of the agent (default: {LAZYIMAGE_CONF})',
    )
    check.add_argument(
        '--nova-conf',
        metavar='FILE',
        action='append',
        help='of nova-compute; may be given several times (default: '
        f'{" and ".join(NOVA_CONF)}, if there)',
    )
    check.add_argument(
        '--glance-conf',
        metavar='FILE',
        action='append',
        help='of glance-api; may be given several times (default: '
        f'{" and ".join(GLANCE_CONF)}, if there)',
    )
    check.add_argument(
        '--quiet', action='store_true', help='only what is wrong'
    )
    return made


def _existing(named: list[str] | None, usual: Sequence[str]) -> list[str]:
    if named is not None:
        return named
    return [path for path in usual if os.path.exists(path)]


def look(arguments: argparse.Namespace) -> list[checks.Finding]:
    """Everything that can be looked at from here.

    :raises OSError: a file that was named cannot be read
    """
    usual = _existing(None, [LAZYIMAGE_CONF])
    ours = configurations.read(
        [arguments.config_file] if arguments.config_file else usual
    )
    agent = {
        name: ours.get('agent', name, fallback=None) or default
        for name, default in DEFAULTS.items()
    }
    mount_root = pathlib.Path(agent['mount_root'])
    nova_paths = _existing(arguments.nova_conf, NOVA_CONF)
    glance_paths = _existing(arguments.glance_conf, GLANCE_CONF)
    found = []
    store_ids = ['blob1']
    if nova_paths or not glance_paths:
        found += checks.of_host(
            mount_root, pathlib.Path(agent['run_directory']), agent['socket']
        )
        found += checks.of_mount(mount_root, agent['socket'])
    found += configurations.of_signatures(ours)
    if nova_paths:
        nova = configurations.read(nova_paths)
        found += configurations.of_nova(nova, str(mount_root), agent['socket'])
        named = nova.get('lazyimage', 'glance_stores', fallback=None)
        if named:
            store_ids = [part.strip() for part in named.split(',')]
    if glance_paths:
        glance = configurations.read(glance_paths)
        found += configurations.of_glance(
            glance,
            store_ids if nova_paths else configurations.blob_stores(glance),
        )
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Print the findings; the worst is the exit status."""
    arguments = parser().parse_args(argv)
    try:
        found = look(arguments)
    except OSError as exc:
        print(
            f'lazyimage-status: could not read "{exc.filename}": '
            f'{exc.strerror}; name another file',
            file=sys.stderr,
        )
        return checks.Level.FAILURE
    for finding in found:
        if finding.good and arguments.quiet:
            continue
        text = finding.message
        if finding.good and finding.name != 'kernel':
            text = 'as it should be'
            if finding.option:
                text = f'{finding.option} is as it should be'
        print(f'{_SHOWN[finding.level]:8}{finding.name}: {text}')
    return max((finding.level for finding in found), default=0)


if __name__ == '__main__':
    sys.exit(main())
