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
"""What the FUSE door and the engine cost, in a disk's steady state.

Baseline is a pass-through that hands every request of the same FUSE layer to
one plain file: what a file system in user space costs in any case. Beside it
QEMU's FUSE export of a raw file, and the raw file: what the disk itself does.
"""

from bench import disks
from bench import fio
from bench import harness

LOADS = fio.by_name(
    [
        fio.Load(verb, random, block, depth)
        for block in ('4k', '64k', '1M')
        for verb in ('read', 'write', 'flush')
        for random in (True, False)
        for depth in (1, 32)
    ]
)
MIRRORS = (disks.Delta, disks.Cache)


def goals() -> list[harness.Goal]:
    found = []
    for name, load in LOADS.items():
        for mirror in MIRRORS:
            if mirror is disks.Cache and load.verb != 'read':
                continue
            found += [
                harness.Goal(name, mirror.name, 0.95),
                harness.Goal(
                    name, mirror.name, 1.1, disks.QemuStorageDaemon.name
                ),
            ]
        if load.block == '4k':
            found.append(
                harness.Goal(
                    name, disks.Passthrough.name, 0.75, disks.Raw.name
                )
            )
    return found


BENCH = harness.Bench(
    name='fuse',
    summary=f'O_DIRECT through FUSE, fio, {fio.SIZE_BYTES >> 20} MiB, '
    f'{fio.SECONDS:g} s a case',
    metrics=[harness.Metric(name, 'IOPS', 'higher') for name in LOADS],
    baseline=disks.Passthrough.name,
    contenders=lambda work: [
        disk(work, LOADS)
        for disk in (
            disks.Raw,
            disks.Passthrough,
            disks.QemuStorageDaemon,
            *MIRRORS,
        )
    ],
    goals=goals(),
    cpu_unit='µs/op',
)
