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
"""The first write of a block, of which a disk has one for each.

A block that was never written takes room in a file, for the raw disk as for
the mirror, which also notes it in its map: a second file to be synced. Disks
are large and sparse, so that a random block is a new one.
"""

from bench import disks
from bench import fio
from bench import harness

SIZE_BYTES = 64 << 30
LOADS = fio.by_name(
    [
        fio.Load(verb, True, '4k', depth)
        for verb in ('write', 'flush')
        for depth in (1, 32)
    ]
)


class Untouched(disks.Mirror):
    """A mirror of a version without any content."""

    name = 'mirror'
    kind = 'empty'

    def warm(self) -> None:
        """Nothing is to be warm here."""


BENCH = harness.Bench(
    name='touch',
    summary=f'first write of a block, sparse disks of {SIZE_BYTES >> 30} GiB, '
    f'{fio.SECONDS:g} s a case',
    metrics=[harness.Metric(name, 'IOPS', 'higher') for name in LOADS],
    baseline=disks.Raw.name,
    contenders=lambda work: [
        disk(work, LOADS, size_bytes=SIZE_BYTES, empty=True)
        for disk in (disks.Raw, disks.Passthrough, Untouched)
    ],
    goals=[
        harness.Goal(name, Untouched.name, 0.45)
        for name, load in LOADS.items()
        if load.verb == 'flush'
    ],
    cpu_unit='µs/op',
)
