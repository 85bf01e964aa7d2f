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
"""What verifying is asked for, and what it answers.

:mod:`lazyblob.survey` does it.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import NamedTuple

from lazyblob import damage
from lazyblob import pacing
from lazyblob import wanted

#: Told the step, how many of it are done, and of how many if that is known.
Progress = Callable[[str, int, int | None], None]
#: The content of an object from somewhere else, proved; None: nobody has it.
Rescue = Callable[[wanted.Wanted], bytes | None]
Faults = dict[bytes, damage.Fault]


class Subset(NamedTuple):
    """The ``number``-th of some parts of all digests, from 1 on."""

    number: int
    parts: int

    def has(self, name: bytes) -> bool:
        return int.from_bytes(name[:8], 'big') % self.parts == self.number - 1


@dataclasses.dataclass
class Report:
    """What was looked at, and what was wrong with it.

    :ivar object_count: distinct descriptors, nodes and chunks
    :ivar chunk_count: of these, chunks
    :ivar read_bytes: uncompressed bytes of chunks that were read
    :ivar unreferenced_objects: None: the store was not listed
    :ivar faults: the objects that are damaged or missing, by digest
    """

    version_count: int = 0
    object_count: int = 0
    chunk_count: int = 0
    read_bytes: int = 0
    unreferenced_objects: int | None = None
    unreferenced_bytes: int | None = None
    faults: Faults = dataclasses.field(default_factory=dict)
    find_problems: Callable[[Faults], Iterator[damage.Problem]] | None = None
    find_unreferenced: Callable[[], Iterator[tuple[bytes, int]]] | None = None

    @property
    def is_sound(self) -> bool:
        return not self.faults

    def problems(
        self, faults: Faults | None = None
    ) -> Iterator[damage.Problem]:
        """What the faults hit, version by version; walks them once more.

        :param faults: of those of the report, only these
        """
        faults = self.faults if faults is None else faults
        if faults and self.find_problems is not None:
            yield from self.find_problems(faults)

    def unreferenced(self) -> Iterator[tuple[bytes, int]]:
        """Digest and stored size of what no version reached."""
        if self.find_unreferenced is not None:
            yield from self.find_unreferenced()


@dataclasses.dataclass(frozen=True)
class Options:
    """How thoroughly, and how fast.

    :ivar reads_data: chunks are read and proved
    :ivar subset: of the chunks, only these are
    :ivar threads: that read; None: as many as suit the store
    :ivar pace: bounds the bytes that are read from the store
    :ivar reporter: who it is in the list of bad digests
    """

    reads_data: bool = True
    subset: Subset | None = None
    threads: int | None = None
    pace: pacing.Pace | None = None
    reporter: str = 'verify'
