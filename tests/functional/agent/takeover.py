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
"""Agents that are killed under load: who keeps them, who writes, what it took.

Shared by tests/functional/agent and tests/soak.
"""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time


import nova_lazyimage
from nova_lazyimage.agent import client

ROOT = pathlib.Path(nova_lazyimage.__file__).parent.parent
HERE = pathlib.Path(__file__).parent
FAULTY_AGENT = HERE / 'faulty_agent.py'
WRITER = HERE / 'verified_writer.py'
READY_SECONDS_MAX = float(os.environ.get('LAZYIMAGE_TEST_PATIENCE', '60'))


def until(condition, seconds, what, explain=str):
    """Wait for a condition; its value."""
    end = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < end, f'no {what}: {explain()}'
        time.sleep(0.01)


def status(agent):
    """What an agent says of itself; nothing while it is away."""
    with contextlib.suppress(client.AgentUnavailable):
        return agent.status()
    return {}


class Kept:
    """An agent under the holder, at a site of the functional tests.

    :ivar deaths: when each of its agents was killed, seconds since the epoch
    """

    def __init__(self, site, agent=None):
        self.site = site
        self.client = site.client
        self.deaths = []
        self.pid = self.struck = 0
        self.log = (site.folder / 'agent.log').open('ab')
        site.agent = self
        self.holder = subprocess.Popen(
            [
                *(sys.executable, '-m', 'nova_lazyimage.cmd.holder', '--'),
                *(agent or [sys.executable, str(FAULTY_AGENT)]),
                *site.arguments,
            ],
            stdout=self.log,
            stderr=self.log,
            env=site.environment(),
        )
        kept = self.wait_until_ready()['kept']
        if not kept:
            self.kill()
        assert kept

    def status(self):
        return status(self.client)

    def wait_until_ready(self):
        """Until an agent other than the last one is ready; its status."""

        def is_ready():
            found = self.status()
            assert self.holder.poll() is None, self.said()
            return found.get('ready') and found['pid'] != self.pid and found

        found = until(is_ready, READY_SECONDS_MAX, 'agent', self.said)
        self.pid = found['pid']
        return found

    def said(self):
        return self.site.log()[-4000:]

    def strike(self):
        """Kill the agent; the holder starts another one."""
        self.deaths.append(time.time())
        self.struck = self.pid
        os.kill(self.pid, signal.SIGKILL)

    def strike_again(self, seconds):
        """Kill whatever agent there is by then, ready or not."""
        time.sleep(seconds)
        with contextlib.suppress(OSError, ValueError):
            pid = int((self.site.state / 'journal' / 'lock').read_text())
            ours = f'PPid:\t{self.holder.pid}' in status_of(pid)
            if ours and pid != self.struck:
                self.struck = pid
                self.deaths.append(time.time())
                os.kill(pid, signal.SIGKILL)

    def renew(self):
        """Hand over to a new agent, as an upgrade does."""
        self.deaths.append(time.time())
        self.holder.send_signal(signal.SIGHUP)

    def stop(self):
        """An end for good; the holder's status."""
        self.holder.send_signal(signal.SIGTERM)
        status = self.holder.wait(60)
        self.log.close()
        return status

    def kill(self):
        """Agent and holder, as when everything is given up."""
        self.holder.kill()
        self.holder.wait()
        with contextlib.suppress(OSError, ValueError):
            pid = int((self.site.state / 'journal' / 'lock').read_text())
            if str(self.site.state) in command_of(pid):
                os.kill(pid, signal.SIGKILL)
        self.log.close()


def status_of(pid):
    return pathlib.Path(f'/proc/{pid}/status').read_text()


def command_of(pid):
    return pathlib.Path(f'/proc/{pid}/cmdline').read_bytes().decode()


class Load:
    """The verified writer on one disk."""

    def __init__(self, folder, path, threads=4, seed=1):
        self.report = folder / f'report-{seed}.json'
        self.process = subprocess.Popen(
            [
                *(sys.executable, str(WRITER), str(path)),
                *(str(self.report), str(threads)),
            ],
            stdin=subprocess.PIPE,
            env={**os.environ, 'WRITER_SEED': str(seed)},
        )

    @property
    def is_running(self):
        return self.process.poll() is None

    def end(self):
        """Stop it and have it look at every block again; its report."""
        self.process.communicate(b'.', timeout=2 * READY_SECONDS_MAX)
        found = json.loads(self.report.read_text())
        assert found['errors'] == [], found['errors']
        assert found['operations']['write'] > 20, 'too little was written'
        assert found['operations']['read'] > 20, 'too little was read'
        return found

    def close(self):
        if self.is_running:
            self.process.kill()
        self.process.wait()


def stalls(deaths, reports):
    """The longest operation that each death held up, in seconds."""
    found = []
    operations = [long for report in reports for long in report['long']]
    ends = [*deaths[1:], float('inf')]
    for death, end in zip(deaths, ends, strict=True):
        held = [
            seconds
            for begun, seconds, _ in operations
            if begun <= end and begun + seconds >= death
        ]
        found.append(max(held, default=0.0))
    return found


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def describe(deaths, reports):
    """One line: what was done, and what the deaths cost."""
    held = stalls(deaths, reports)
    operations = sum(
        count for report in reports for count in report['operations'].values()
    )
    return (
        f'{len(deaths)} deaths, {operations} operations, 0 errors; longest '
        f'stall of a death p50 {percentile(held, 0.5):.2f} s, '
        f'p99 {percentile(held, 0.99):.2f} s, max {max(held):.2f} s'
    )


def other_build(folder):
    """Another build of the same tree, with a version of its own.

    ``LAZYIMAGE_OTHER_BUILD`` names a tree to use instead, an older release
    with its extension, say.
    """
    given = os.environ.get('LAZYIMAGE_OTHER_BUILD')
    if given:
        return pathlib.Path(given)
    tree = folder / 'other-build'
    for name in ('nova_lazyimage', 'lazyblob'):
        shutil.copytree(
            ROOT / name,
            tree / name,
            ignore=shutil.ignore_patterns('__pycache__'),
        )
    for found in ROOT.glob('*.egg-info'):
        target = tree / found.name
        shutil.copytree(found, target)
        for name in ('PKG-INFO', 'METADATA'):
            path = target / name
            if path.exists():
                lines = path.read_text().splitlines()
                lines = [
                    'Version: 99.0' if line.startswith('Version:') else line
                    for line in lines
                ]
                path.write_text('\n'.join([*lines, '']))
    return tree


def alternating(folder, trees):
    """A command: the agent of each tree in turn, one a start."""
    script = folder / 'alternate.py'
    script.write_text(
        'import os, pathlib, sys\n'
        f'trees = {[str(tree) for tree in trees]!r}\n'
        f'count = pathlib.Path({str(folder / "starts")!r})\n'
        'number = int(count.read_text()) if count.exists() else 0\n'
        'count.write_text(str(number + 1))\n'
        'tree = trees[number % len(trees)]\n'
        'os.environ["PYTHONPATH"] = tree\n'
        'os.environ["LAZYIMAGE_BUILD"] = tree\n'
        f'program = {str(FAULTY_AGENT)!r}\n'
        'os.execv(sys.executable, [sys.executable, program, *sys.argv[1:]])\n'
    )
    return [sys.executable, str(script)]
