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
"""Local requests beside 64 reads that wait for a store that does not answer.

Two servers alike; in one of them 64 readers of another disk are parked, each
in a chunk of its own. A machine that is a little busy moves by more than what
is looked for, within seconds: so a round is many short slices, one of each
server in turn. Operations a second are the median of a server's slices;
latency is the 99th percentile of all its requests together.
"""

import collections
import os
import pathlib
import statistics
import threading
import time

from bench import disks
from bench import fio
from bench import harness
from bench import serving

READERS = 64
# An even number; the least shows that the bench works.
SLICES = 8 if fio.SECONDS >= 1 else 2
SLICE_SECONDS = fio.SECONDS / 4
LOADS = fio.by_name(
    [
        fio.Load(verb, True, '4k', depth)
        for verb in ('read', 'write', 'flush')
        for depth in (1, 32)
    ]
)
PERCENTILE = 0.99


def p99(case: str) -> str:
    return f'{case}, p99'


class Slices:
    """Runs the slices of both servers, whoever of them is asked first."""

    def __init__(self) -> None:
        self.disks: list[disks.Raw] = []
        self.found: dict[tuple[str, str], harness.Measurements] = {}

    def take(self, name: str, case: str) -> harness.Measurements:
        if (name, case) not in self.found:
            self._run(case)
        return self.found.pop((name, case))

    def _run(self, case: str) -> None:
        load = LOADS[case]
        speeds: dict[str, list[float]] = collections.defaultdict(list)
        counts: dict[str, collections.Counter[int]] = collections.defaultdict(
            collections.Counter
        )
        cpu: dict[str, float] = collections.defaultdict(float)
        total: dict[str, int] = collections.defaultdict(int)
        for number in range(SLICES):
            # ABBA: what drifts meets both alike.
            for disk in self.disks[:: -1 if number % 2 else 1]:
                server = disk.server()
                assert server is not None
                before = fio.cpu_seconds(server)
                job = load.job(
                    disk.path, disk.size_bytes, seconds=SLICE_SECONDS
                )
                side = load.side(job)
                speeds[disk.name].append(float(side['iops']))
                cpu[disk.name] += load.client_seconds(job)
                cpu[disk.name] += fio.cpu_seconds(server) - before
                total[disk.name] += side['total_ios']
                timed = (
                    job['sync']['lat_ns']
                    if load.verb == 'flush'
                    else side['clat_ns']
                )
                for bound, count in timed['bins'].items():
                    counts[disk.name][int(bound)] += count
        for name, found in speeds.items():
            self.found[name, case] = {
                case: statistics.median(found),
                p99(case): percentile(counts[name], PERCENTILE) / 1000,
                harness.CPU: cpu[name] / total[name] * fio.MICRO,
            }


def percentile(counts: collections.Counter[int], share: float) -> float:
    """The bound below which a share of all that was counted lies."""
    left = share * counts.total()
    for bound in sorted(counts):
        left -= counts[bound]
        if left <= 0:
            return float(bound)
    return 0.0


class Alone(disks.Delta):
    name = 'nothing parked'
    kind = 'starved'
    slices: Slices

    def warm(self) -> None:
        super().warm()
        self.slices.disks.append(self)

    def sample(self, case: str) -> harness.Measurements:
        return self.slices.take(self.name, case)


class Beside(Alone):
    name = f'beside {READERS} misses'

    def warm(self) -> None:
        super().warm()
        path = self.mount / 'bench' / 'starved'
        readers = [
            threading.Thread(target=wait, args=(path, number), daemon=True)
            for number in range(READERS)
        ]
        for reader in readers:
            reader.start()
        # A reader that is let in would have ended by then.
        time.sleep(1.0)
        if not all(reader.is_alive() for reader in readers):
            raise harness.Missing('a read of a missing chunk did not wait')


def wait(path: pathlib.Path, chunk: int) -> None:
    """Read what never comes, until the disk is taken away (EIO)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.pread(handle, 4096, chunk * serving.CHUNK_SIZE_BYTES)
    except OSError:
        pass
    finally:
        os.close(handle)


def contenders(work: pathlib.Path) -> list[Alone]:
    both = [Alone(work, LOADS), Beside(work, LOADS)]
    slices = Slices()
    for one in both:
        one.slices = slices
    return both


BENCH = harness.Bench(
    name='misses',
    summary=f'4 KiB of local blocks beside {READERS} parked reads, {SLICES} '
    f'slices of {SLICE_SECONDS:g} s of each a case and round',
    metrics=[
        metric
        for name in LOADS
        for metric in (
            harness.Metric(name, 'IOPS', 'higher'),
            harness.Metric(p99(name), 'µs'),
        )
    ],
    baseline=Alone.name,
    contenders=contenders,
    goals=[harness.Goal(name, Beside.name, 0.9) for name in LOADS],
    cpu_unit='µs/op',
)
