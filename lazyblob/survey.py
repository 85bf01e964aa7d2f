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
"""A survey: that versions can be read back, bit for bit.

From the catalog through the manifests to the chunks. Each object is met once
for all versions of a run: an equal subtree is walked once, a chunk is read
once. Descriptors and nodes are always read and proved by their digests; of a
chunk either its presence and its length are looked at, or it is read and
proved, all of them or a part: the m-th part of n is chosen by the digest, so
that n runs have read everything.

Over a whole repository the store is listed first: what it lists and no
version reaches is *unreferenced*, the leavings of crashes or a commit that is
under way, which is no fault. What is not in the listing is looked for once
more before it is called missing: it may have been put since. Where asking for
one object costs a request, its length comes from the listing; where it is as
cheap (files), it is looked at itself and compared with what its header says.

What is wrong goes to the catalog's list of bad digests as it is found. What
is listed already is read in any case, and leaves the list if it is sound.

A store that does not answer, or refuses, ends the run with its error: nobody
can say what it holds. An object that it cannot read (the disk below it says
so) is a fault like any other.

Memory: 67 MiB for a million objects (:mod:`lazyblob.inventory`; ``make bench
ONLY=verify``), some chunks under way, a few hundred bytes for each fault.

Threads: one calls; a few read.
"""

import collections
import concurrent.futures
from collections.abc import Callable, Iterable, Iterator, Sequence

from lazyblob import accounting
from lazyblob import chunk
from lazyblob import damage
from lazyblob import exceptions
from lazyblob import inventory
from lazyblob import manifest
from lazyblob import pacing
from lazyblob import verifying
from lazyblob import wanted
from lazyblob.catalog import api
from lazyblob.chunk_store import base

_REACHED = 1
_PRESENT = 2
_LISTED = 4
_CLEAN = 8
_TOLD_AT_ONCE = 100
_STEP = 500
_THREADS = 4
_REMOTE_THREADS = 8
#: Not the object's fault: the store may answer later, or to somebody else.
_PASSING = (exceptions.TemporaryStoreError, exceptions.StoreDenied)


class Survey:
    """One run.

    :param versions: those to verify, as often as it is called, with their
        blobs' scopes
    :param is_whole: they are all of the repository: the store is listed
    :param rescue: where a node comes from that the store cannot give, so
        that what is below it is seen
    """

    def __init__(
        self,
        store: base.ChunkStore,
        catalog: api.Catalog,
        versions: Callable[[], Iterable[tuple[api.Version, str]]],
        options: verifying.Options,
        *,
        is_whole: bool = False,
        rescue: verifying.Rescue | None = None,
        progress: verifying.Progress | None = None,
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._versions = versions
        self._options = options
        self._is_whole = is_whole
        self._rescue = rescue
        self._progress = progress
        self._pace = options.pace or pacing.Pace(0)
        self._seen = inventory.Inventory()
        # Nodes at the end of a disk, whose shape depends on its size.
        self._ends: set[tuple[bytes, int]] = set()
        self._listed_count: int | None = None
        self._report = verifying.Report()
        self._found_bad: list[str] = []
        self._found_sound: list[str] = []
        self._version: tuple[str, int] = ('', 0)
        threads = options.threads or (
            _REMOTE_THREADS if store.is_remote else _THREADS
        )
        self._window = 4 * threads
        self._pool = concurrent.futures.ThreadPoolExecutor(
            threads, thread_name_prefix='verify'
        )
        self._pending: collections.deque[
            tuple[
                wanted.Wanted,
                tuple[str, int],
                concurrent.futures.Future[exceptions.LazyBlobError | None],
            ]
        ] = collections.deque()

    def run(self) -> verifying.Report:
        """Look at everything, and note it in the catalog."""
        report = self._report
        if self._is_whole:
            self._list()
        for bad in _pages(self._catalog):
            self._seen.mark(bytes.fromhex(bad.digest), _LISTED)
        with self._pool:
            try:
                for version, scope in self._versions():
                    self._version = version.blob_id, version.number
                    self._walk(version, scope)
                    report.version_count += 1
                self._settle(0)
                self._drop_deleted()
                self._say_reached()
            finally:
                for *_, future in self._pending:
                    future.cancel()
                self._tell()
        if self._is_whole:
            report.unreferenced_objects = report.unreferenced_bytes = 0
            for _, size_bytes in self.unreferenced():
                report.unreferenced_objects += 1
                report.unreferenced_bytes += size_bytes
            report.find_unreferenced = self.unreferenced
        report.find_problems = self.problems
        return report

    def problems(self, faults: verifying.Faults) -> Iterator[damage.Problem]:
        """What they hit, version by version."""
        hits = damage.Hits(faults, self._seen, _CLEAN, self._content)
        for version, scope in self._versions():
            yield from hits.of(version, scope)

    def unreferenced(self) -> Iterator[tuple[bytes, int]]:
        """What the store has and no version reached."""
        for name, size_bytes, marks in self._seen:
            if marks & (_PRESENT | _REACHED) == _PRESENT:
                yield name, size_bytes

    # The walk

    def _list(self) -> None:
        for name, size_bytes in self._store.list():
            self._seen.add(name, size_bytes)
            self._seen.mark(name, _PRESENT)
            if len(self._seen) % _STEP == 0:
                self._say('listing', len(self._seen), None)
        self._listed_count = len(self._seen)

    def _walk(self, version: api.Version, scope: str) -> None:
        asked = wanted.descriptor(version, scope)
        if not self._is_new(asked.name):
            return
        content = self._needed(asked)
        if content is None:
            return
        try:
            found = manifest.Descriptor.decode(content)
        except exceptions.ChunkCorrupt as exc:
            self._fault(asked, exc)
            return
        if found.tree != manifest.HOLE:
            self._nodes(found, scope, [(found.tree, 0)], found.depth - 1)

    def _nodes(
        self,
        disk: manifest.Descriptor,
        scope: str,
        names: Sequence[tuple[bytes, int]],
        level: int,
    ) -> None:
        """Nodes of one level, each with its first chunk's index."""
        new = []
        for name, first in names:
            slots = manifest.slots_inside(disk.chunk_count, level, first)
            is_new = self._is_new(name)
            if slots < manifest.FANOUT:
                is_new = (name, slots) not in self._ends
                self._ends.add((name, slots))
            if is_new:
                new.append((wanted.node(name, scope), first, slots))
        # Read together: a level of one node is 2 MiB at most.
        read = self._pool.map(self._read, [asked for asked, *_ in new])
        for (asked, first, slots), (content, exc) in zip(
            new, read, strict=True
        ):
            found = self._or_rescued(asked, content, exc)
            if found is not None:
                try:
                    table = manifest.decode_node(found, level, slots)
                except exceptions.ChunkCorrupt as wrong:
                    self._fault(asked, wrong)
                else:
                    self._table(disk, scope, table, level, first)

    def _table(
        self,
        disk: manifest.Descriptor,
        scope: str,
        table: bytes,
        level: int,
        first: int,
    ) -> None:
        entries = (
            (table[slot * 32 : slot * 32 + 32], slot)
            for slot in range(manifest.FANOUT)
        )
        present = [pair for pair in entries if pair[0] != manifest.HOLE]
        if level == 0:
            for name, _ in present:
                if self._is_new(name):
                    self._chunk(
                        wanted.piece(name, scope, disk.chunk_size_bytes)
                    )
            return
        shift = manifest.FANOUT_BITS * level
        children = [(name, first + (slot << shift)) for name, slot in present]
        self._nodes(disk, scope, children, level - 1)

    def _is_new(self, name: bytes) -> bool:
        """Whether nothing reached it before; it is reached now."""
        if self._seen.mark(name, _REACHED) & _REACHED:
            return False
        self._report.object_count += 1
        if self._report.object_count % _STEP == 0:
            self._say_reached()
        return True

    # One object

    def _chunk(self, asked: wanted.Wanted) -> None:
        self._report.chunk_count += 1
        options = self._options
        marks = self._seen.marks(asked.name)
        is_read = marks & _LISTED or (
            options.reads_data
            and (options.subset is None or options.subset.has(asked.name))
        )
        if is_read:
            self._report.read_bytes += asked.size_bytes
            self._submit(asked, self._proof)
        elif not self._store.is_remote:
            exc = self._presence(asked)
            if exc is not None:
                self._fault(asked, exc)
        elif not marks & _PRESENT or not self._is_plausible(asked):
            self._submit(asked, self._presence)

    def _is_plausible(self, asked: wanted.Wanted) -> bool:
        """By its length in the listing."""
        size_bytes = self._seen.size(asked.name) or 0
        return chunk.HEADER_BYTES < size_bytes <= asked.object_bytes_max

    def _presence(
        self, asked: wanted.Wanted
    ) -> exceptions.LazyBlobError | None:
        try:
            if self._store.has(asked.name):
                return None
            # Absent, or of a length that cannot be: which is it?
            return self._proof(asked)
        except _PASSING:
            raise
        except exceptions.StoreError as exc:
            return exc

    def _proof(self, asked: wanted.Wanted) -> exceptions.LazyBlobError | None:
        return self._read(asked)[1]

    def _read(
        self, asked: wanted.Wanted
    ) -> tuple[bytes, exceptions.LazyBlobError | None]:
        """Its content, or why there is none."""
        try:
            data = asked.read(self._store)
            self._pace.pay(len(data))
            return asked.content_of(data), None
        except _PASSING:
            raise
        except (exceptions.NotFound, exceptions.StoreError) as exc:
            return b'', exc

    def _needed(self, asked: wanted.Wanted) -> bytes | None:
        """The content of a descriptor or node."""
        return self._or_rescued(asked, *self._read(asked))

    def _or_rescued(
        self,
        asked: wanted.Wanted,
        content: bytes,
        exc: exceptions.LazyBlobError | None,
    ) -> bytes | None:
        if exc is None:
            self._sound(asked)
            return content
        self._fault(asked, exc)
        return None if self._rescue is None else self._rescue(asked)

    def _content(self, asked: wanted.Wanted) -> bytes:
        """For what is walked once more. :raises ChunkCorrupt, NotFound:"""
        content, exc = self._read(asked)
        if exc is None:
            return content
        found = None if self._rescue is None else self._rescue(asked)
        if found is not None:
            return found
        if isinstance(exc, (exceptions.NotFound, exceptions.ChunkCorrupt)):
            raise exc
        raise exceptions.ChunkCorrupt(str(exc)) from exc

    def _submit(
        self,
        asked: wanted.Wanted,
        check: Callable[[wanted.Wanted], exceptions.LazyBlobError | None],
    ) -> None:
        future = self._pool.submit(check, asked)
        self._pending.append((asked, self._version, future))
        self._settle(self._window)

    def _settle(self, left: int) -> None:
        """Note what came of all but the last few."""
        while len(self._pending) > left:
            asked, version, future = self._pending.popleft()
            exc = future.result()
            if exc is None:
                self._sound(asked)
            else:
                self._fault(asked, exc, version)

    # What came of it

    def _sound(self, asked: wanted.Wanted) -> None:
        if self._seen.marks(asked.name) & _LISTED:
            self._found_sound.append(asked.name.hex())

    def _fault(
        self,
        asked: wanted.Wanted,
        exc: exceptions.LazyBlobError,
        version: tuple[str, int] | None = None,
    ) -> None:
        self._report.faults[asked.name] = damage.fault(
            asked, exc, version or self._version
        )
        self._found_bad.append(asked.name.hex())
        if len(self._found_bad) >= _TOLD_AT_ONCE:
            self._tell()

    def _tell(self) -> None:
        bad, self._found_bad = self._found_bad, []
        sound, self._found_sound = self._found_sound, []
        if bad:
            self._catalog.report_bad(bad, self._options.reporter)
        if sound:
            self._catalog.forget_bad(sound)

    def _drop_deleted(self) -> None:
        """What a version needed that was deleted meanwhile is no fault."""
        are_there: dict[tuple[str, int], bool] = {}
        for name, fault in list(self._report.faults.items()):
            if fault.first not in are_there:
                are_there[fault.first] = accounting.is_there(
                    self._catalog, *fault.first
                )
            if fault.is_missing and not are_there[fault.first]:
                del self._report.faults[name]

    def _say_reached(self) -> None:
        self._say('verifying', self._report.object_count, self._listed_count)

    def _say(self, step: str, done: int, total: int | None) -> None:
        if self._progress is not None:
            self._progress(step, done, total)


def _pages(catalog: api.Catalog) -> Iterator[api.BadDigest]:
    page = catalog.bad_digests()
    while page:
        yield from page
        page = catalog.bad_digests(after=page[-1].digest)
