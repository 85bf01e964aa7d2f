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
"""What a mirror takes when there are a thousand of them in one process.

Each round makes them, all of one version of 10 GiB, kills the process, serves
them again from what it left, and lets them be idle.
"""

import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any

from bench import harness

COUNT = int(os.environ.get('LAZYIMAGE_BENCH_MIRRORS', '1000'))
FEW = 10
SIZE_BYTES = 10 << 30
IDLE_SECONDS = 5.0
LIVE = pathlib.Path('/dev/shm')


def attach(folder: pathlib.Path, live: pathlib.Path, count: int) -> Any:
    """What ``bench.scaling`` says of itself, before it is killed."""
    server = subprocess.Popen(
        [
            sys.executable,
            '-m',
            'bench.scaling',
            str(folder),
            str(live),
            str(count),
            str(SIZE_BYTES),
            str(IDLE_SECONDS),
        ],
        cwd=pathlib.Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    assert server.stderr is not None
    try:
        said = server.stdout.readline()
    finally:
        server.kill()
        errors = server.stderr.read()
        server.communicate()
        # The mount is dead: only its name may be used.
        subprocess.run(
            ['fusermount3', '-u', '-z', folder / 'mnt'], capture_output=True
        )
    if not said:
        raise harness.Missing(f'bench.scaling ended: {errors[-2000:]}')
    return json.loads(said)


class Mirrors:
    """So many mirrors."""

    def __init__(self, work: pathlib.Path, count: int) -> None:
        self.name = f'{count} mirrors'
        self.count = count
        self.folder = work / str(count)
        self.live = LIVE / f'{work.name}-{count}'

    def prepare(self) -> None:
        if shutil.which('fusermount3') is None:
            raise harness.Missing('fusermount3 is missing; install it')

    def run(self) -> harness.Measurements:
        self.cleanup()
        new = attach(self.folder, self.live, self.count)
        again = attach(self.folder, self.live, self.count)
        return {
            'attach': new['attach_seconds'] / self.count * 1000,
            're-export': again['attach_seconds'],
            'private memory': again['private_bytes'] / self.count / 1024,
            'map': again['map_bytes'] / self.count / 1024,
            'threads': float(again['threads']),
            'idle CPU': again['idle_cpu_seconds'] / IDLE_SECONDS * 100,
        }

    def cleanup(self) -> None:
        for folder in (self.folder, self.live):
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(folder)


BENCH = harness.Bench(
    name='scale',
    summary=f'mirrors of {SIZE_BYTES >> 30} GiB of one version, one process',
    metrics=[
        harness.Metric('attach', 'ms each'),
        harness.Metric('re-export', 's'),
        harness.Metric('private memory', 'KiB each'),
        harness.Metric('map', 'KiB each'),
        harness.Metric('threads', ''),
        harness.Metric('idle CPU', '% of a core'),
    ],
    baseline=f'{FEW} mirrors',
    contenders=lambda work: [Mirrors(work, FEW), Mirrors(work, COUNT)],
    goals=[
        harness.Goal('re-export', f'{COUNT} mirrors', at_most=10.0),
        harness.Goal('private memory', f'{COUNT} mirrors', at_most=2048.0),
        harness.Goal('threads', f'{COUNT} mirrors', at_least=1.0),
        harness.Goal('idle CPU', f'{COUNT} mirrors', at_most=1.0),
    ],
    rounds=3,
)
