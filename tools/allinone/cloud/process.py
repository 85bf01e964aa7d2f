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
"""Processes that outlive the command that started them.

Each is recorded by its number *and* its start time, so that stopping never
hits a stranger that got the number later.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence

from cloud import settings


class ServiceError(Exception):
    """A service did not do what it was started for."""


def start_time(pid: int) -> int | None:
    """Start of a process in clock ticks, None if it is gone."""
    try:
        stat = pathlib.Path(f'/proc/{pid}/stat').read_text(encoding='ascii')
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(') ')[2].split()
    return None if fields[0] == 'Z' else int(fields[19])


@dataclasses.dataclass
class Service:
    """One process and what is known about it."""

    name: str
    command: Sequence[str]
    user: str = 'root'
    #: The user's own, if not of the same name.
    group: str = ''
    #: Done before it is started.
    prepare: Callable[[], None] = lambda: None
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ready: Callable[[], bool] = lambda: True
    #: What must be ready before it can start.
    needs: Sequence[str] = ()
    stop_seconds: float = 10.0
    stop_signal: int = signal.SIGTERM
    ready_seconds: float = 120.0

    @property
    def log(self) -> pathlib.Path:
        return settings.LOG / f'{self.name}.log'

    @property
    def record(self) -> pathlib.Path:
        return settings.RUN / f'{self.name}.json'

    def pid(self) -> int | None:
        """Number of the running process, None if it does not run."""
        try:
            record = json.loads(self.record.read_text(encoding='ascii'))
        except FileNotFoundError:
            return None
        pid = int(record['pid'])
        return pid if start_time(pid) == record['start'] else None

    def started_at(self) -> float:
        """When it was started, in seconds since the epoch."""
        return self.record.stat().st_mtime

    def start(self) -> None:
        """Start the process unless it runs."""
        if self.pid() is not None:
            return
        settings.RUN.mkdir(exist_ok=True)
        settings.LOG.mkdir(exist_ok=True)
        self.prepare()
        command = list(self.command)
        if self.user != 'root':
            command[:0] = [
                'setpriv',
                f'--reuid={self.user}',
                f'--regid={self.group or self.user}',
                '--init-groups',
                '--',
            ]
        environment = {
            'PATH': os.environ['PATH'],
            'LANG': 'C.UTF-8',
            'HOME': '/root'
            if self.user == 'root'
            else f'/var/lib/{self.user}',
            **self.environment,
        }
        with self.log.open('ab') as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd='/',
                start_new_session=True,
            )
        start = start_time(process.pid)
        self.record.write_text(
            json.dumps({'pid': process.pid, 'start': start}), encoding='ascii'
        )
        # Not waited for: process 1 of the root reaps it later.
        process.returncode = 0

    def wait_ready(self) -> None:
        """Wait until it serves; ServiceError with its last words if not."""
        deadline = time.monotonic() + self.ready_seconds
        while True:
            with contextlib.suppress(OSError, ServiceError):
                if self.ready():
                    return
            if self.pid() is None:
                raise ServiceError(f'{self.name} ended:\n{self.tail()}')
            if time.monotonic() > deadline:
                raise ServiceError(
                    f'{self.name} is not ready after '
                    f'{self.ready_seconds:.0f} s:\n{self.tail()}'
                )
            time.sleep(0.2)

    def tail(self, lines: int = 25) -> str:
        """The end of its log."""
        try:
            text = self.log.read_text(encoding='utf-8', errors='replace')
        except FileNotFoundError:
            return '(no log)'
        return '\n'.join(text.splitlines()[-lines:])

    def signal(self, number: int) -> None:
        """Send one signal to it, if it runs."""
        pid = self.pid()
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        """End it as a crash would, its children too."""
        pid = self.pid()
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        self.wait_gone(10)

    def stop(self) -> None:
        """Ask it to end; end it if it does not in time."""
        self.signal(self.stop_signal)
        if not self.wait_gone(self.stop_seconds):
            self.kill()
        self.record.unlink(missing_ok=True)

    def wait_gone(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self.pid() is not None:
            reap()
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True


def reap() -> None:
    """Collect children that ended, where this process started them."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
