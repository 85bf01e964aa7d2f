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
"""How long a guest's requests stand still when another agent takes over.

The load is the one of the functional tests: four threads that read, write,
flush and discard one disk and check every byte. Each round kills the agent,
or hands over to a new one, so many times; a gap is the longest request of
those that one of them held up.
"""

import contextlib
import importlib
import os
import pathlib
import random
import shutil
import sys
import time
import uuid
from typing import Any

from bench import harness

TIMES = int(os.environ.get('LAZYIMAGE_BENCH_KILLS', '20'))
DISK_BYTES = 12 << 20
PAUSE_SECONDS = 0.5
TESTS = 'tests.functional.agent'


class Agents:
    """Agents of one site, one after the other, under load."""

    name = ''

    def __init__(self, work: pathlib.Path) -> None:
        self.folder = work / self.name.replace(' ', '-')
        self.stack = contextlib.ExitStack()

    def end_agent(self, kept: Any) -> None:
        raise NotImplementedError

    def prepare(self) -> None:
        try:
            conftest = importlib.import_module(f'{TESTS}.conftest')
            takeover = importlib.import_module(f'{TESTS}.takeover')
        except ImportError as exc:
            raise harness.Missing(f'the load of the tests: {exc}') from exc
        self.takeover = takeover
        self.folder.mkdir()
        site = conftest.Site(self.folder)
        self.stack.callback(site.close)
        # The tests' own agent loads what makes it fail.
        self.kept = takeover.Kept(
            site, [sys.executable, '-m', 'nova_lazyimage.cmd.agent']
        )
        image = site.image(random.Random(20).randbytes(DISK_BYTES))
        found = site.client.attach(str(uuid.uuid4()), 'disk', clone_blob=image)
        self.disk = found['path']

    def run(self) -> harness.Measurements:
        load = self.takeover.Load(self.folder, self.disk)
        try:
            self.kept.deaths.clear()
            for _ in range(TIMES):
                time.sleep(PAUSE_SECONDS)
                self.end_agent(self.kept)
                self.kept.wait_until_ready()
            time.sleep(PAUSE_SECONDS)
            gaps = self.takeover.stalls(self.kept.deaths, [load.end()])
        finally:
            load.close()
        return {
            f'gap, {share:.0%}': 1000 * self.takeover.percentile(gaps, share)
            for share in (0.5, 0.99)
        }

    def cleanup(self) -> None:
        self.stack.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class Killed(Agents):
    """SIGKILL."""

    name = 'killed'

    def end_agent(self, kept: Any) -> None:
        kept.strike()


class HandedOver(Agents):
    """An upgrade."""

    name = 'handed over'

    def end_agent(self, kept: Any) -> None:
        kept.renew()


BENCH = harness.Bench(
    name='takeover',
    summary=f'the longest request of each of {TIMES} take-overs a round',
    metrics=[
        harness.Metric('gap, 50%', 'ms'),
        harness.Metric('gap, 99%', 'ms'),
    ],
    baseline=Killed.name,
    contenders=lambda work: [Killed(work), HandedOver(work)],
    rounds=3,
)
