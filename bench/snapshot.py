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
"""COMMIT of 15 MiB as the repository sees it, and what it must not depend on.

Beside a program that writes and syncs as many files of the same sizes, for
changes that lie together and for 3,840 blocks scattered over a disk of 20 GB,
each of which takes a whole chunk along. From opening the parent to the
published version; the chunks are copied out of memory. Another program syncs
all its files at once, as COMMIT does: what is left of the difference is
hashing, compressing, the manifest and the catalog.

Whether it depends on the number of versions or on the disk's size is told by
disks that differ in nothing else. The 20 GB are full as far as manifests say:
their chunks are nowhere, and nobody reads them.
"""

import concurrent.futures
import ctypes
import itertools
import os
import pathlib
import random
import shutil
import statistics
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from bench import harness

CHANGED_BYTES = int(os.environ.get('LAZYIMAGE_BENCH_MIB', '15')) << 20
BLOCK_BYTES = 4096
CHUNK_BYTES = 512 << 10
DISK_BYTES = 20 << 30
SMALL_BYTES = 1 << 30
LARGE_BYTES = 1 << 40
VERSIONS = int(os.environ.get('LAZYIMAGE_BENCH_VERSIONS', '1000'))
CLONES = int(os.environ.get('LAZYIMAGE_BENCH_CLONES', '150'))
THREADS = 2
# What takes milliseconds is done so often, and the median taken.
REPEATED = 5
FILES = 'files, one sync'
FILES_SYNCED = 'files, each synced'
DISK = 'COMMIT, 20 GB'
OLD = f'COMMIT, version {VERSIONS:,}'
SMALL = 'COMMIT, 1 GB'
LARGE = 'COMMIT, 1 TB sparse'
TOGETHER, SCATTERED = 'together', 'scattered'
DIFF, STORED = 'diff', 'stored by clones'
_CASES = (TOGETHER, SCATTERED, DIFF, STORED)
_POOL_BYTES = 16 << 20
_numbers = itertools.count(1)
_pool = b''


def pool() -> bytes:
    """What chunks are cut from; compresses to about half."""
    global _pool  # made once, for all contenders
    if not _pool:
        noise = random.Random(15).randbytes(_POOL_BYTES // 2)
        parts = range(0, len(noise), BLOCK_BYTES)
        _pool = b''.join(noise[n : n + BLOCK_BYTES] * 2 for n in parts)
    return _pool


def indexes(case: str, disk_bytes: int) -> list[int]:
    """Which chunks have changed."""
    count = CHANGED_BYTES // CHUNK_BYTES
    first = disk_bytes // CHUNK_BYTES // 3
    if case != SCATTERED:
        # The small disk's third, wherever it is: paths of equal width.
        first = SMALL_BYTES // CHUNK_BYTES // 3
        return list(range(first, first + count))
    chance = random.Random(CHANGED_BYTES)
    blocks = disk_bytes // BLOCK_BYTES
    chosen = chance.sample(range(blocks), CHANGED_BYTES // BLOCK_BYTES)
    return sorted({block * BLOCK_BYTES // CHUNK_BYTES for block in chosen})


def content(index: int, generation: int) -> bytearray:
    """A chunk that was never there before."""
    source = memoryview(pool())
    start = index * 8 * BLOCK_BYTES % (len(source) - CHUNK_BYTES)
    data = bytearray(source[start : start + CHUNK_BYTES])
    chance = random.Random(index << 32 | generation)
    data[:BLOCK_BYTES] = chance.randbytes(BLOCK_BYTES)
    return data


def repeated(case: str, measure: Callable[[], float]) -> float:
    """Once, or the median of some times."""
    count = 1 if case == SCATTERED else REPEATED
    return statistics.median(measure() for _ in range(count))


class Files:
    """A program that writes so many files of such sizes.

    They stay, as chunks do: who deletes them between two rounds gets the same
    memory back for the next, still in the processor's caches.

    :param each: whether it syncs them one by one
    """

    def __init__(self, work: pathlib.Path, name: str, *, each: bool) -> None:
        self.name = name
        self._folder = work / name.replace(' ', '-')
        self._each = each
        self._sizes: dict[str, list[int]] = {}

    def prepare(self) -> None:
        from lazyblob import chunk

        for case in (TOGETHER, SCATTERED):
            if self.has(case):
                self._sizes[case] = [
                    len(chunk.pack(content(i, 0), chunk.Kind.CHUNK))
                    for i in indexes(case, DISK_BYTES)
                ]

    def has(self, case: str) -> bool:
        return case == TOGETHER or (case == SCATTERED and not self._each)

    def sample(self, case: str) -> harness.Measurements:
        found = repeated(case, lambda: self._write(self._sizes[case]))
        if case == SCATTERED:  # a GB, which no cache keeps anyway
            self.cleanup()
        return {case: found}

    def _write(self, sizes: Sequence[int]) -> float:
        source = memoryview(pool())
        folder = self._folder / str(next(_numbers))
        folder.mkdir(parents=True)
        os.sync()
        begun = time.perf_counter()
        for number, size in enumerate(sizes):
            handle = os.open(
                folder / str(number), os.O_WRONLY | os.O_CREAT, 0o640
            )
            os.write(handle, source[:size])
            if self._each:
                os.fsync(handle)
            os.close(handle)
        handle = os.open(folder, os.O_RDONLY)
        if self._each:
            os.fsync(handle)
        elif ctypes.CDLL(None).syncfs(handle):
            raise harness.Missing('syncfs failed')
        seconds = time.perf_counter() - begun
        os.close(handle)
        return seconds * 1000

    def cleanup(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


class Disk:
    """A disk in a repository of its own.

    :param filled_bytes: how much of it holds chunks
    :param versions: how many it has had before
    """

    def __init__(
        self,
        work: pathlib.Path,
        name: str,
        size_bytes: int,
        *,
        filled_bytes: int,
        versions: int = 1,
        cases: Sequence[str],
    ) -> None:
        self.name = name
        self._folder = work / str(uuid.uuid4())
        self._size_bytes = size_bytes
        self._filled_bytes = filled_bytes
        self._versions = versions
        self._cases = cases
        self._repository: Any = None
        self._stored = 0.0

    def prepare(self) -> None:
        from lazyblob import repository

        self._repository = repository.initialise(
            *repository.urls_of(self._folder.as_uri())
        )
        self._make('disk')
        for _ in range(self._versions - 1):
            self._commit('disk', [next(_numbers) % 1000])

    def has(self, case: str) -> bool:
        return case in self._cases

    def sample(self, case: str) -> harness.Measurements:
        if case == STORED:
            return {case: self._stored_by_clones()}
        if case == DIFF:
            return {case: repeated(case, self._diff)}
        changed = indexes(case, self._size_bytes)
        return {case: repeated(case, lambda: self._timed_commit(changed))}

    def _timed_commit(self, changed: Sequence[int]) -> float:
        os.sync()
        begun = time.perf_counter()
        self._commit('disk', changed)
        return (time.perf_counter() - begun) * 1000

    def cleanup(self) -> None:
        if self._repository is not None:
            self._repository.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _make(self, blob_id: str) -> None:
        """A first version whose chunks are only said to be there."""
        from lazyblob import digest
        from lazyblob.catalog import api

        made = self._repository
        blob = made.catalog.create(
            blob_id,
            kind=api.Kind.DISK,
            project_id='p',
            chunk_size_bytes=CHUNK_BYTES,
        )
        chance = random.Random(1)
        with made.commit(blob, None, size_bytes=self._size_bytes) as target:
            for index in range(self._filled_bytes // CHUNK_BYTES):
                name = chance.randbytes(digest.SIZE_BYTES)
                target._builder.set(index, name)
            self._publish(blob, target)

    def _commit(self, blob_id: str, changed: Sequence[int]) -> int:
        """Its generation."""
        made = self._repository
        blob = made.catalog.get(blob_id)
        head = made.catalog.version(blob_id)
        parent = made.tree(head.root, blob.scope)
        generation = next(_numbers)
        with made.commit(blob, parent, size_bytes=self._size_bytes) as target:
            with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
                for _ in pool.map(
                    lambda i: target.put(i, content(i, generation)), changed
                ):
                    pass
            self._publish(blob, target)
        return generation

    def _publish(self, blob: Any, target: Any) -> None:
        target.publish(
            blob.id,
            epoch=blob.epoch,
            parent=blob.head,
            commit_id=uuid.uuid4().hex,
            root=target.finish(),
            size_bytes=self._size_bytes,
        )

    def _diff(self) -> float:
        made = self._repository
        self._commit('disk', indexes(TOGETHER, self._size_bytes))
        head = made.catalog.version('disk')
        before = made.catalog.version('disk', head.number - 1)
        begun = time.perf_counter()
        found = list(made.diff(before, head))
        seconds = time.perf_counter() - begun
        if len(found) != CHANGED_BYTES // CHUNK_BYTES:
            raise harness.Missing(f'{len(found)} chunks differ')
        return seconds * 1000

    def _stored_by_clones(self) -> float:
        """What the store grew by on disk, to the changed chunks compressed.

        Counted, so once is enough.
        """
        from lazyblob import chunk

        if not self._stored:
            changed = indexes(TOGETHER, self._size_bytes)
            before = self._stored_bytes()
            compressed_bytes = 0
            for _ in range(CLONES):
                clone = uuid.uuid4().hex
                self._repository.clone('disk', 1, blob_id=clone)
                generation = self._commit(clone, changed)
                compressed_bytes += sum(
                    len(chunk.pack(content(i, generation), chunk.Kind.CHUNK))
                    for i in changed
                )
            grown_bytes = self._stored_bytes() - before
            self._stored = grown_bytes / compressed_bytes
        return self._stored

    def _stored_bytes(self) -> int:
        return sum(
            path.stat().st_blocks * 512
            for path in (self._folder / 'chunks').glob('*/*')
        )


def contenders(work: pathlib.Path) -> list[Any]:
    def disk(
        name: str,
        size_bytes: int,
        filled_bytes: int,
        cases: Sequence[str] = (TOGETHER, DIFF),
        versions: int = 1,
    ) -> Disk:
        return Disk(
            work,
            name,
            size_bytes,
            filled_bytes=filled_bytes,
            versions=versions,
            cases=cases,
        )

    return [
        Files(work, FILES, each=False),
        Files(work, FILES_SYNCED, each=True),
        disk(DISK, DISK_BYTES, DISK_BYTES, _CASES),
        disk(OLD, DISK_BYTES, DISK_BYTES, versions=VERSIONS),
        disk(SMALL, SMALL_BYTES, SMALL_BYTES),
        disk(LARGE, LARGE_BYTES, SMALL_BYTES),
    ]


BENCH = harness.Bench(
    name='snapshot',
    summary=f'COMMIT of {CHANGED_BYTES >> 20} MiB to a repository in files, '
    f'and as many files of the same sizes; {CLONES} clones that COMMIT as '
    'much',
    metrics=[
        harness.Metric(TOGETHER, 'ms'),
        harness.Metric(SCATTERED, 'ms'),
        harness.Metric(DIFF, 'ms'),
        harness.Metric(STORED, 'of the chunks'),
    ],
    baseline=FILES,
    contenders=contenders,
    goals=[
        harness.Goal(TOGETHER, DISK, at_least=1 / 1.5),
        harness.Goal(TOGETHER, DISK, at_least=1 / 1.5, against=FILES_SYNCED),
        harness.Goal(SCATTERED, DISK, at_least=1 / 1.5),
        harness.Goal(TOGETHER, OLD, at_least=0.9, against=DISK),
        harness.Goal(TOGETHER, LARGE, at_least=0.9, against=SMALL),
        harness.Goal(DIFF, OLD, at_least=0.9, against=DISK),
        harness.Goal(DIFF, LARGE, at_least=0.7, against=SMALL),
        harness.Goal(STORED, DISK, at_most=1.1),
    ],
)
