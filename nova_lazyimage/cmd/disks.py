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
"""What ``attach``, ``commit``, ``detach`` and ``status`` share.

With ``--repository`` (or ``LAZYIMAGE_REPOSITORY``) the disks are served by a
stand-alone agent of that repository, which ``attach`` starts and which ends
with its last disk; else by the agent of this host.

A disk that people attach has a name; the UUID that the agent wants for its
server derives from it.
"""

import argparse
import contextlib
import os
import pathlib
import re
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator

from lazyblob import exceptions
from nova_lazyimage.agent import client
from nova_lazyimage.cmd import console

START_SECONDS_MAX = 30.0
START_PAUSE_SECONDS = 0.1
NAMESPACE = uuid.UUID('0f2b1c53-8f5c-5b4e-8d0e-3f3e4b6f0c11')


class Place:
    """Which agent serves, and how to start it."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.url = arguments.repository
        if self.url is None and arguments.config_file is None:
            self.url = os.environ.get(console.ENVIRONMENT)
        if self.url and '://' not in self.url:
            self.url = f'file://{os.path.abspath(self.url)}'
        if self.url:
            from nova_lazyimage.cmd import agent

            self.state = pathlib.Path(
                arguments.state or agent.stand_alone_state(self.url)
            ).absolute()
            path = str(agent.stand_alone_socket(self.state))
        else:
            path = _configured_socket(arguments.config_file)
        self.client = client.AgentClient(path)

    @property
    def stands_alone(self) -> bool:
        """Whether the agent is ours to start and stop."""
        return bool(self.url)

    def running(self) -> client.AgentClient:
        """The agent's client; a stand-alone agent is started if need be.

        :raises AgentUnavailable: it did not start; the message says why
        """
        if self._answers():
            return self.client
        if not self.stands_alone:
            return self.client  # whose calls say what is wrong
        self.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        log = self.state / 'agent.log'
        with open(log, 'ab') as output:
            process = subprocess.Popen(
                [
                    # Keeps the disks of an agent that dies.
                    *(sys.executable, '-m', 'nova_lazyimage.cmd.holder'),
                    '--',
                    *(sys.executable, '-m', 'nova_lazyimage.cmd.agent'),
                    '--repository',
                    self.url,
                    '--state',
                    str(self.state),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                # Python looks for modules where it is started, before the
                # installed ones: in a checkout there is no engine.
                cwd='/',
            )
        until = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < until:
            if self._answers():
                return self.client
            if process.poll() is not None:
                break
            time.sleep(START_PAUSE_SECONDS)
        said = log.read_text(errors='replace').strip().splitlines()
        raise client.AgentUnavailable(
            f'the agent did not start: {said[-1] if said else "no reason"} '
            f'(see "{log}")'
        )

    def _answers(self) -> bool:
        try:
            return bool(self.client.status()['ready'])
        except client.AgentUnavailable:
            return False

    def stop_if_idle(self) -> None:
        """End a stand-alone agent that serves nothing any more."""
        if not self.stands_alone:
            return
        status = self.client.status()
        if status['mirrors']:
            return
        try:
            process = os.pidfd_open(status['pid'])
        except ProcessLookupError:
            return
        # Until it is gone, not until its socket is: the mount goes later,
        # and the next agent needs its lock.
        try:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(process, signal.SIGINT)
            select.select([process], [], [], START_SECONDS_MAX)
        finally:
            os.close(process)


def _configured_socket(path: str | None) -> str:
    from oslo_config import cfg

    from nova_lazyimage.conf import agent as options

    path = path or console.CONFIG_FILE
    conf = cfg.ConfigOpts()
    options.register_opts(conf)
    files = [path] if os.access(path, os.R_OK) else []
    try:
        conf([], project='lazyimage', default_config_files=files)
        return conf.agent.socket
    except cfg.Error as exc:
        raise exceptions.InvalidConfiguration(f'"{path}": {exc}') from exc


def key(name: str) -> tuple[str, str]:
    """The server's UUID and disk's name that a disk of people has."""
    blob, _number = console.split(name)
    disk = re.sub(r'[^A-Za-z0-9._-]', '-', blob).lstrip('._-')[:64]
    return str(uuid.uuid5(NAMESPACE, name)), disk or 'disk'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What each of these commands takes."""
    parser.add_argument(
        '--state',
        metavar='DIRECTORY',
        help='where the stand-alone agent keeps its disks (default: a folder '
        'of the repository below $XDG_STATE_HOME/lazyimage)',
    )


@contextlib.contextmanager
def agent_errors() -> Iterator[None]:
    """What the agent says, as the command's own error."""
    try:
        yield
    except client.AgentError as exc:
        raise exceptions.LazyBlobError(str(exc)) from exc
