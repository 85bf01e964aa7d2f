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
"""``lazyimage completion``: a shell that knows the commands."""

import argparse
from typing import Any

from lazyblob import exceptions
from nova_lazyimage.cmd import console


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        'completion',
        help='print what makes a shell complete commands and options',
        description='Print a script that makes a shell complete commands and '
        'options.',
    )
    parser.add_argument('shell', choices=('bash', 'zsh', 'tcsh'))
    console.teach(
        parser,
        'lazyimage completion bash > '
        '/usr/share/bash-completion/completions/lazyimage',
        'eval "$(lazyimage completion bash)"',
        'lazyimage completion zsh > ~/.zfunc/_lazyimage',
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from nova_lazyimage.cmd import lazyimage

    try:
        import shtab
    except ImportError as exc:
        raise exceptions.InvalidConfiguration(
            'the Python package "shtab" is not installed; install it, or '
            'lazyimage[agent]'
        ) from exc
    print(shtab.complete(lazyimage.parser(), arguments.shell))
