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
"""What a freeze costs a guest that writes, whatever the disk's size.

The disk is dirty everywhere, the guest writes 4 KiB blocks at random places at
depth 32 and is frozen some forty times a second. The baseline is what is
allowed: 1 ms beyond the oldest write under way, and a pause of 10 ms or twice
the run's own p99 of a write.
"""

import json
import pathlib
import shutil
import statistics
import subprocess
import sys

from bench import fio
from bench import harness

GIB = 1 << 30
SECONDS = max(4.0, fio.SECONDS)
OVERHEAD, PAUSE = 'overhead p99', 'pause p99 of its bound'
OVERHEAD_MS, PAUSE_MS = 1.0, 10.0
SIZES = {'20 GB': 20 * GIB, '1 TB': 1024 * GIB}


class Allowed:
    """The baseline."""

    name = 'what is allowed'

    def prepare(self) -> None:
        """Nothing."""

    def run(self) -> harness.Measurements:
        return {OVERHEAD: OVERHEAD_MS, PAUSE: 1.0}

    def cleanup(self) -> None:
        """Nothing."""


class Frozen:
    """A disk of one size."""

    def __init__(self, work: pathlib.Path, name: str) -> None:
        self.name = name
        self.folder = work / name.replace(' ', '-')

    def prepare(self) -> None:
        fio.need('fio')
        fio.need('fallocate')

    def run(self) -> harness.Measurements:
        try:
            done = subprocess.run(
                [
                    sys.executable,
                    '-m',
                    'bench.freezing',
                    str(self.folder),
                    str(SIZES[self.name]),
                    str(SECONDS),
                ],
                cwd=pathlib.Path(__file__).parents[1],
                capture_output=True,
                text=True,
            )
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
        if done.returncode:
            raise harness.Missing(f'{self.name}: {done.stderr[-2000:]}')
        found = json.loads(done.stdout)
        pauses = statistics.quantiles(found['pauses'], n=100)
        overheads = statistics.quantiles(found['overheads'], n=100)
        allowed = max(PAUSE_MS, 2 * found['write_p99'])
        return {
            OVERHEAD: overheads[98],
            PAUSE: pauses[98] / allowed,
            'overhead p50': overheads[49],
            'pause p50': pauses[49],
            'pause p99': pauses[98],
            'longest pause': max(found['pauses']),
            'write p99': found['write_p99'],
            'freezes': len(found['pauses']),
        }

    def cleanup(self) -> None:
        """Done by each run."""


BENCH = harness.Bench(
    name='freeze',
    summary=f'freezes of a disk that is dirty everywhere while 4 KiB are '
    f'written at depth 32, {SECONDS:g} s a size',
    metrics=[
        harness.Metric(OVERHEAD, 'ms'),
        harness.Metric(PAUSE, 'of 1'),
    ],
    baseline=Allowed.name,
    contenders=lambda work: [
        Allowed(),
        *(Frozen(work, name) for name in SIZES),
    ],
    goals=[
        harness.Goal(metric, name, 1.0)
        for metric in (OVERHEAD, PAUSE)
        for name in SIZES
    ],
)
