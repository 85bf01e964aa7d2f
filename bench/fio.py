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
"""One load of fio on one file, and what it cost."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

from bench import harness

SIZE_BYTES = int(os.environ.get('LAZYIMAGE_BENCH_MIB', '256')) << 20
SECONDS = float(os.environ.get('LAZYIMAGE_BENCH_SECONDS', '2'))
MICRO = 1e6


def need(program: str) -> None:
    if shutil.which(program) is None:
        raise harness.Missing(f'{program} is missing; install it')


def cpu_seconds(pid: int) -> float:
    """What a process has used so far, its threads together."""
    stat = pathlib.Path(f'/proc/{pid}/stat').read_text()
    fields = stat.rpartition(')')[2].split()
    ticks = os.sysconf('SC_CLK_TCK')
    return (int(fields[11]) + int(fields[12])) / ticks


@dataclasses.dataclass(frozen=True)
class Load:
    """What is done to a file, always with O_DIRECT.

    :param verb: ``read``, ``write``, or ``flush``: a write and an fdatasync(2)
    :param depth: requests at a time, of one thread; of ``flush`` as many
        threads, each of which waits for its own
    """

    verb: str
    random: bool
    block: str
    depth: int

    @property
    def name(self) -> str:
        order = 'random' if self.random else 'sequential'
        verb = 'write + flush' if self.verb == 'flush' else self.verb
        return f'{self.block} {order} {verb}, depth {self.depth}'

    def arguments(self, size_bytes: int) -> list[str]:
        kind = 'read' if self.verb == 'read' else 'write'
        chosen = [
            f'--rw={"rand" if self.random else ""}{kind}',
            f'--bs={self.block}',
            f'--size={size_bytes}',
        ]
        if self.verb != 'flush':
            return [*chosen, '--ioengine=libaio', f'--iodepth={self.depth}']
        chosen += ['--ioengine=psync', '--fdatasync=1', '--group_reporting']
        if self.depth > 1:
            chosen += [f'--numjobs={self.depth}']
            if not self.random:
                share = size_bytes // self.depth
                chosen[2] = f'--size={share}'
                chosen += [f'--offset_increment={share}']
        return chosen

    def run(
        self,
        path: pathlib.Path,
        size_bytes: int = SIZE_BYTES,
        *,
        server: int | None = None,
    ) -> harness.Measurements:
        """Operations a second, and the CPU of one in microseconds.

        :param server: the process that serves the file, to be counted too
        """
        served = cpu_seconds(server) if server else 0.0
        job = self.job(path, size_bytes)
        served = cpu_seconds(server) - served if server else 0.0
        side = self.side(job)
        return {
            self.name: float(side['iops']),
            harness.CPU: (self.client_seconds(job) + served)
            / side['total_ios']
            * MICRO,
        }

    def side(self, job: dict[str, Any]) -> dict[str, Any]:
        """What fio says of the requests that are measured."""
        return dict(job['read' if self.verb == 'read' else 'write'])

    def client_seconds(self, job: dict[str, Any]) -> float:
        """The CPU of fio itself."""
        threads = self.depth if self.verb == 'flush' else 1
        share = threads * (job['usr_cpu'] + job['sys_cpu']) / 100
        return float(share * self.side(job)['runtime'] / 1000)

    def job(
        self,
        path: pathlib.Path,
        size_bytes: int = SIZE_BYTES,
        *,
        seconds: float = SECONDS,
    ) -> dict[str, Any]:
        """What fio says of one run, histograms of latency included."""
        done = subprocess.run(
            [
                'fio',
                '--name=bench',
                f'--filename={path}',
                '--direct=1',
                '--thread',
                '--norandommap',
                '--randrepeat=0',
                '--fallocate=none',
                f'--runtime={seconds * 1000:.0f}ms',
                '--time_based',
                '--output-format=json+',
                *self.arguments(size_bytes),
            ],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise harness.Missing(
                f'fio on {path} failed: {done.stderr or done.stdout}'
            )
        found: dict[str, Any] = json.loads(
            done.stdout[done.stdout.index('{') :]
        )
        (job,) = found['jobs']
        return dict(job)


def by_name(loads: Sequence[Load]) -> dict[str, Load]:
    return {load.name: load for load in loads}
