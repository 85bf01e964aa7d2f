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
"""What the FUSE door and the engine cost, beside a bare pass-through.

fio, 4 KiB, O_DIRECT, at random places, one and 32 requests at a time. The
pass-through hands every request of the same FUSE layer to one plain file; it
is what a file system in user space costs in any case, and the baseline. The
raw file shows what the disk itself does.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
from typing import Any

from bench import harness

SIZE_BYTES = int(os.environ.get('LAZYIMAGE_BENCH_MIB', '256')) << 20
SECONDS = float(os.environ.get('LAZYIMAGE_BENCH_SECONDS', '3'))
JOBS = [
    (f'{verb} d{depth}', f'rand{verb}', depth)
    for verb in ('read', 'write')
    for depth in (1, 32)
]
START_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 30.0


def need(program: str) -> None:
    if shutil.which(program) is None:
        raise harness.Missing(f'{program} is missing; install it')


def fio(path: pathlib.Path, verb: str, depth: int) -> float:
    """Operations a second on one file."""
    done = subprocess.run(
        [
            'fio',
            '--name=bench',
            f'--filename={path}',
            f'--rw={verb}',
            '--bs=4k',
            '--direct=1',
            f'--iodepth={depth}',
            '--ioengine=libaio',
            f'--size={SIZE_BYTES}',
            f'--runtime={SECONDS}',
            '--time_based',
            '--randrepeat=0',
            '--output-format=json',
        ],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise harness.Missing(
            f'fio on {path} failed: {done.stderr or done.stdout}'
        )
    found: dict[str, Any] = json.loads(done.stdout[done.stdout.index('{') :])
    return float(found['jobs'][0][verb.removeprefix('rand')]['iops'])


def fill(path: pathlib.Path) -> None:
    """Write every block once, in order."""
    block = os.urandom(1 << 20)
    with path.open('r+b' if path.exists() else 'wb') as file:
        for _ in range(SIZE_BYTES >> 20):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())


def cpu_seconds(pid: int) -> float:
    """What a process has used so far, its threads together."""
    stat = pathlib.Path(f'/proc/{pid}/stat').read_text()
    fields = stat.rpartition(')')[2].split()
    ticks = os.sysconf('SC_CLK_TCK')
    return (int(fields[11]) + int(fields[12])) / ticks


class Raw:
    """One plain file."""

    name = 'raw file'

    def __init__(self, work: pathlib.Path) -> None:
        self.path = work / 'raw'

    def prepare(self) -> None:
        need('fio')
        fill(self.path)

    def path_for(self, verb: str) -> pathlib.Path:
        return self.path

    def run(self) -> harness.Measurements:
        return {
            name: fio(self.path_for(verb), verb, depth)
            for name, verb, depth in JOBS
        }

    def cleanup(self) -> None:
        self.path.unlink(missing_ok=True)


class Served(Raw):
    """A disk served by a process of ours (``bench.serving``)."""

    def __init__(self, work: pathlib.Path, name: str) -> None:
        self.name = name
        self.folder = work / name.replace(' ', '-')
        self.mount = self.folder / 'mnt'
        self.server: subprocess.Popen[str] | None = None

    def start(self, *arguments: object) -> None:
        need('fio')
        need('fusermount3')
        self.mount.mkdir(parents=True)
        log = (self.folder / 'log').open('w')
        with log:
            self.server = subprocess.Popen(
                [sys.executable, '-m', 'bench.serving', *map(str, arguments)],
                cwd=pathlib.Path(__file__).parents[1],
                stdout=log,
                stderr=log,
                text=True,
            )
        deadline = time.monotonic() + START_SECONDS_MAX
        while not all(self.path_for(verb).exists() for _, verb, _ in JOBS):
            if self.server.poll() is not None:
                raise harness.Missing(
                    f'the server of "{self.name}" ended: '
                    + (self.folder / 'log').read_text()[-2000:]
                )
            if time.monotonic() > deadline:
                raise harness.Missing(f'"{self.name}" did not come up')
            time.sleep(0.05)

    def run(self) -> harness.Measurements:
        assert self.server is not None
        before = cpu_seconds(self.server.pid)
        found = super().run()
        found[harness.CPU] = cpu_seconds(self.server.pid) - before
        return found

    def cleanup(self) -> None:
        if self.server is not None:
            self.server.terminate()
            try:
                self.server.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                self.server.kill()
                self.server.wait()
        # A dead mount cannot be looked at, os.path.ismount() denies it.
        mounts = pathlib.Path('/proc/self/mounts').read_text()
        if f' {self.mount} ' in mounts:
            subprocess.run(['fusermount3', '-u', '-z', self.mount])
        shutil.rmtree(self.folder, ignore_errors=True)


class Passthrough(Served):
    """The FUSE layer over one plain file."""

    def __init__(self, work: pathlib.Path) -> None:
        super().__init__(work, 'pass-through')
        self.file = self.folder / 'file'

    def path_for(self, verb: str) -> pathlib.Path:
        return self.mount / 'passthrough' / 'file'

    def prepare(self) -> None:
        self.folder.mkdir()
        fill(self.file)
        self.start('passthrough', self.mount, self.file)


class Mirror(Served):
    """A mirror of the engine."""

    def path_for(self, verb: str) -> pathlib.Path:
        return self.mount / 'bench' / verb.removeprefix('rand')

    def prepare(self) -> None:
        self.start('mirror', self.mount, self.folder / 'state', SIZE_BYTES)
        for verb in ('randread', 'randwrite'):
            self.warm(self.path_for(verb))

    def warm(self, path: pathlib.Path) -> None:
        raise NotImplementedError


class Delta(Mirror):
    """... whose guest wrote every block."""

    def __init__(self, work: pathlib.Path) -> None:
        super().__init__(work, 'mirror in delta')

    def warm(self, path: pathlib.Path) -> None:
        fill(path)


class Cache(Mirror):
    """... whose chunks are all in the chunk cache."""

    def __init__(self, work: pathlib.Path) -> None:
        super().__init__(work, 'mirror in cache')

    def warm(self, path: pathlib.Path) -> None:
        with path.open('rb') as file:
            while file.read(1 << 20):
                pass


BENCH = harness.Bench(
    name='fuse',
    summary=f'4 KiB O_DIRECT through FUSE, fio, {SIZE_BYTES >> 20} MiB, '
    f'{SECONDS:g} s a job',
    metrics=[harness.Metric(name, 'IOPS', 'higher') for name, _, _ in JOBS],
    baseline='pass-through',
    contenders=lambda work: [
        Raw(work),
        Passthrough(work),
        Delta(work),
        Cache(work),
    ],
    goals=[
        harness.Goal(name, contender, 0.9)
        for name, _, _ in JOBS
        for contender in ('mirror in delta', 'mirror in cache')
    ],
)
