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
in a chunk of its own.
"""

import os
import pathlib
import threading
import time

from bench import disks
from bench import fio
from bench import harness
from bench import serving

READERS = 64
LOADS = fio.by_name(
    [
        fio.Load(verb, True, '4k', depth)
        for verb in ('read', 'write', 'flush')
        for depth in (1, 32)
    ]
)


class Alone(disks.Delta):
    name = 'nothing parked'
    kind = 'starved'


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


BENCH = harness.Bench(
    name='misses',
    summary=f'4 KiB of local blocks beside {READERS} parked reads, '
    f'{fio.SECONDS:g} s a case',
    metrics=[harness.Metric(name, 'IOPS', 'higher') for name in LOADS],
    baseline=Alone.name,
    contenders=lambda work: [Alone(work, LOADS), Beside(work, LOADS)],
    goals=[harness.Goal(name, Beside.name, 0.9) for name in LOADS],
    cpu_unit='µs/op',
)
