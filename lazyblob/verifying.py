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
"""Proving that a version can be read back, bit for bit.

Every node and chunk is read from the store, not from a cache, and checked
against its digest; equal chunks are read once.

Threads: one thread calls; a few read.
"""

import concurrent.futures
import dataclasses
from collections.abc import Callable, Iterator
from typing import TypeVar

from lazyblob import exceptions
from lazyblob import manifest

T = TypeVar('T')
_BATCH = 64


@dataclasses.dataclass(frozen=True)
class Problem:
    """A chunk that cannot be read back; its range reads as an error."""

    index: int
    digest: str
    reason: str


@dataclasses.dataclass
class Report:
    """What was read, and what was wrong with it.

    :ivar chunk_count: chunks that are not holes
    :ivar read_bytes: uncompressed bytes of distinct chunks
    """

    chunk_count: int = 0
    distinct_count: int = 0
    read_bytes: int = 0
    problems: list[Problem] = dataclasses.field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        return not self.problems


def verify(
    source: manifest.Manifest,
    fetch_chunk: Callable[[bytes, int], bytes],
    *,
    threads: int,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """:param progress: called with the chunks done so far"""
    report = Report()
    faults: dict[bytes, str] = {}
    seen: set[bytes] = set()

    def check(name: bytes) -> str:
        try:
            fetch_chunk(name, source.chunk_size_bytes)
        except (exceptions.ChunkCorrupt, exceptions.NotFound) as exc:
            return str(exc)
        return ''

    with concurrent.futures.ThreadPoolExecutor(
        threads, thread_name_prefix='verify'
    ) as pool:
        for batch in _batches(source.chunks(), _BATCH):
            new = list({name: None for _, name in batch if name not in seen})
            for name, fault in zip(new, pool.map(check, new), strict=True):
                seen.add(name)
                if fault:
                    faults[name] = fault
            report.distinct_count += len(new)
            for index, name in batch:
                report.chunk_count += 1
                if name in faults:
                    report.problems.append(
                        Problem(index, name.hex(), faults[name])
                    )
            if progress is not None:
                progress(report.chunk_count)
    report.read_bytes = (
        report.distinct_count - len(faults)
    ) * source.chunk_size_bytes
    return report


def _batches(items: Iterator[T], size: int) -> Iterator[list[T]]:
    batch: list[T] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
