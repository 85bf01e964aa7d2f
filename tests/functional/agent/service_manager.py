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
"""A real systemd of a test's own, and the agent's unit file under it.

It is a user's manager, run by root in namespaces of its own, for there is no
booted system here. What it mounts is seen below ``/proc/<its pid>/root``.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import time


from tests.functional.agent import takeover

PROGRAM = pathlib.Path('/usr/lib/systemd/systemd')
UNIT = takeover.ROOT / 'etc/lazyimage/lazyimage-agent.service'
NAME = 'lazyimage-agent.service'
BEGIN = """\
set -e
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system "$XDG_RUNTIME_DIR"
mount -t tmpfs tmpfs /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
own=/sys/fs/cgroup/$1
shift
mkdir "$own"
echo $$ >"$own/cgroup.procs"
# Not exec: process 1 is a manager of systems, never of a user.
"$@" || true
echo $$ >/sys/fs/cgroup/cgroup.procs
find "$own" -depth -type d -exec rmdir {} +
"""


def version():
    said = subprocess.run(
        [PROGRAM, '--version'], capture_output=True, text=True, check=True
    ).stdout
    return int(re.search(r'\d+', said).group())


class Manager:
    """One systemd; its services end with it."""

    def __init__(self, folder):
        self.folder = folder
        home = folder / 'home'
        self.units = home / '.config/systemd/user'
        self.units.mkdir(parents=True)
        for name in ('basic', 'shutdown', 'test'):
            (self.units / f'{name}.target').write_text(
                f'[Unit]\nDescription={name}\n'
            )
        self.environment = {
            'HOME': str(home),
            'LANG': 'C.UTF-8',
            'PATH': os.environ['PATH'],
            'XDG_RUNTIME_DIR': '/run/user/0',
        }
        self.log = (folder / 'systemd.log').open('wb')
        self._unshare = subprocess.Popen(
            [
                *('unshare', '--mount', '--pid', '--fork', '--cgroup'),
                *('--mount-proc', '--kill-child'),
                *('sh', '-c', BEGIN, 'begin', f'test-{os.getpid()}'),
                *(str(PROGRAM), '--user', '--unit=test.target'),
                '--log-target=console',
            ],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
        )
        self.pid = 0
        takeover.until(self._is_up, 30, 'systemd', self.said)

    def _is_up(self):
        children = pathlib.Path(
            f'/proc/{self._unshare.pid}/task/{self._unshare.pid}/children'
        )
        assert self._unshare.poll() is None, self.said()
        found = children.read_text().split()
        if not found:
            return False
        # That of the namespaces' shell.
        self.pid = int(found[0])
        done = self.control('is-system-running', check=False)
        return done.stdout.strip() in ('running', 'degraded')

    def said(self):
        return (self.folder / 'systemd.log').read_text()[-4000:]

    def control(self, *arguments, check=True):
        """systemctl, inside."""
        done = subprocess.run(
            [
                *('nsenter', '--target', str(self.pid), '--mount', '--pid'),
                *('systemctl', '--user', *arguments),
            ],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=90,
        )
        if check:
            assert done.returncode == 0, f'{done.stderr}\n{self.said()}'
        return done

    def install(self, site, agent):
        """The agent's own unit file, with its program and paths."""
        text = UNIT.read_text()
        command = ' '.join([*agent, *site.arguments])
        environment = ''.join(
            f'Environment="{name}={site.environment()[name]}"\n'
            for name in ('PATH', 'PYTHONPATH', 'AGENT_FAULTS')
        )
        for old, new in (
            (
                r'ExecStart=.*',
                f'{environment}StandardOutput=append:{site.folder}/agent.log'
                f'\nStandardError=inherit\nExecStart={command}',
            ),
            ('/var/lib/lazyimage/mnt', f'{site.state}/mnt'),
            (r'(Runtime|State)Directory.*\n', ''),
        ):
            text, count = re.subn(old, new, text)
            assert count, f'"{old}" is not in the unit file'
        (self.units / NAME).write_text(text)
        # Enabled: of one that nothing wants, a stop leaves nothing.
        wants = self.units / 'test.target.wants'
        wants.mkdir()
        (wants / NAME).symlink_to(self.units / NAME)
        self.control('daemon-reload')

    def view(self, path):
        """A path as it is inside."""
        return f'/proc/{self.pid}/root{path}'

    def close(self):
        if self._unshare.poll() is None:
            self.control('exit', check=False)
            try:
                self._unshare.wait(30)
            except subprocess.TimeoutExpired:
                self._unshare.kill()
                self._unshare.wait()
        self.log.close()


class Serviced:
    """An agent under systemd, as takeover.Kept is under the holder."""

    def __init__(self, manager, site):
        self.manager = manager
        self.site = site
        self.client = site.client
        self.deaths = []
        self.pid = 0
        site.agent = self
        manager.install(site, [sys.executable, str(takeover.FAULTY_AGENT)])
        manager.control('start', NAME)
        assert self.wait_until_ready()['kept']

    def status(self):
        return takeover.status(self.client)

    def wait_until_ready(self):
        def is_ready():
            found = self.status()
            return found.get('ready') and found['pid'] != self.pid and found

        found = takeover.until(is_ready, 60, 'the agent', self.said)
        self.pid = found['pid']
        return found

    def said(self):
        return f'{self.manager.said()}\n{self.site.log()[-4000:]}'

    def strike(self):
        self.deaths.append(time.time())
        self.manager.control('kill', '--signal=KILL', NAME)

    def kill(self):
        """The manager ends it."""
        self.manager.close()


def is_there():
    return os.geteuid() == 0 and PROGRAM.exists() and shutil.which('nsenter')
