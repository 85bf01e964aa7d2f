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
"""The command for people: ``lazyimage``.

Each sub-command is a module with ``register(subparsers)``, which adds its
parser and sets its ``run``: a function of the parsed arguments that answers
an exit status or None. Only the sub-commands' parsers load at start; what a
command needs is imported when it runs, so that ``--help`` is quick.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from lazyblob import exceptions

# In the order of --help.
MODULES = (
    'nova_lazyimage.cmd.commands.init',
    'nova_lazyimage.cmd.commands.import_image',
    'nova_lazyimage.cmd.commands.ls',
    'nova_lazyimage.cmd.commands.show',
    'nova_lazyimage.cmd.commands.history',
    'nova_lazyimage.cmd.commands.du',
    'nova_lazyimage.cmd.commands.export',
    'nova_lazyimage.cmd.commands.copy',
    'nova_lazyimage.cmd.commands.clone',
    'nova_lazyimage.cmd.commands.diff',
    'nova_lazyimage.cmd.commands.delete',
    'nova_lazyimage.cmd.commands.verify',
    'nova_lazyimage.cmd.commands.repair',
    'nova_lazyimage.cmd.commands.sessions',
    'nova_lazyimage.cmd.commands.attach',
    'nova_lazyimage.cmd.commands.commit',
    'nova_lazyimage.cmd.commands.grow',
    'nova_lazyimage.cmd.commands.revert',
    'nova_lazyimage.cmd.commands.detach',
    'nova_lazyimage.cmd.commands.status',
    'nova_lazyimage.cmd.commands.completion',
)

EPILOG = """
The repository is taken from --repository, else from the environment variable
LAZYIMAGE_REPOSITORY, else from [repository] of --config-file, else of
/etc/lazyimage/lazyimage.conf.

NAME is a blob's name or id; NAME@VERSION one of its versions, NAME its
newest. Every command has its own --help.

Exit status: 0 done; 1 it failed, and standard error says in one line what
happened and what to do (verify: damage was found; repair: something is lost;
copy: something was left out); 2 the command line is wrong; 130 interrupted.
"""


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    made = argparse.ArgumentParser(
        prog='lazyimage',
        description='Keep versioned disk images that share what is equal.',
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        '--repository',
        metavar='URL',
        help='the repository: file:///folder holds its chunks and an SQLite '
        'catalog',
    )
    made.add_argument(
        '--config-file',
        metavar='FILE',
        help='read [repository] from this file instead',
    )
    subparsers = made.add_subparsers(
        dest='command', metavar='COMMAND', required=True
    )
    for name in MODULES:
        importlib.import_module(name).register(subparsers)
    return made


def commands() -> dict[str, str]:
    """The sub-commands, and what each is for: for the documentation."""
    subparsers = next(
        action
        for action in parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    return {
        choice.dest: choice.help or ''
        for choice in subparsers._choices_actions
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; what went wrong is one line on standard error."""
    parsed = parser().parse_args(arguments)
    try:
        return parsed.run(parsed) or 0
    except exceptions.LazyBlobError as exc:
        print(f'lazyimage: {exc}', file=sys.stderr)
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as exc:
        where = f'"{exc.filename}": ' if exc.filename else ''
        print(f'lazyimage: {where}{exc.strerror or exc}', file=sys.stderr)
    except KeyboardInterrupt:
        print('lazyimage: interrupted', file=sys.stderr)
        return 130
    return 1


if __name__ == '__main__':
    sys.exit(main())
