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
"""Copying versions to another repository (contract 45).

Objects travel as they lie and are checked by their digest on the way; only
what the target lacks travels. Where the dedupe scopes differ no digest is the
same: there contents travel, and the target hashes and compresses them anew.

Order of writes, in the target: chunks, nodes level by level from the leaves,
the descriptor, a sync, the version's row. Presence: an object is believed to
be there if the store says so; what is *below* a node only if a published
version, looked up after our session began, reaches that node. While anything
is listed as bad there no subtree is passed over, and what is listed is
overwritten.

Crash: what died leaves a session and objects that no version reaches; the
same copy again goes on with what is missing.

Memory: a few objects a thread and a few nodes, whatever the disk's size; of
another dedupe scope the version's manifest as well, as in any commit.

Threads: one :class:`Copy` is one thread's; it starts a few of its own.
"""

import contextlib
import dataclasses
import functools
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from lazyblob import bad
from lazyblob import chunk
from lazyblob import digest
from lazyblob import exceptions
from lazyblob import manifest
from lazyblob import parallel
from lazyblob import patience
from lazyblob import sessions
from lazyblob import tree as trees
from lazyblob.catalog import api

if TYPE_CHECKING:
    from lazyblob import repository


THREADS = 8
_ORIGINS_MAX = 16
_CHUNKS = -1
#: Names of one level, by the index of their first chunk.
Names = Iterator[tuple[int, bytes]]
Progress = Callable[[int], None]


@dataclasses.dataclass
class Result:
    """What became of one version.

    :ivar is_new: it was not there before
    :ivar copied_bytes: what the target's store received
    :ivar found_objects: asked for one by one, and there already
    """

    version: api.Version
    is_new: bool = True
    copied_objects: int = 0
    copied_bytes: int = 0
    found_objects: int = 0


def check(
    source: 'repository.Repository', target: 'repository.Repository'
) -> None:
    """:raises Conflict: both are one repository"""
    if source.info.uuid == target.info.uuid:
        raise exceptions.Conflict(
            f'source and target are the same repository '
            f'"{source.info.uuid}"; "lazyimage clone" makes another blob in it'
        )


def copied_id(source: 'repository.Repository', blob_id: str, name: str) -> str:
    """The id of a copy under another name: the same each time."""
    space = uuid.UUID(source.info.uuid)
    return str(uuid.uuid5(space, f'{blob_id}/{name}'))


class Copy:
    """One version on its way.

    :param version: of the source
    :param blob: its blob, as it is to be in the target
    :param progress: called with the bytes of the disk passed so far
    """

    def __init__(
        self,
        source: 'repository.Repository',
        target: 'repository.Repository',
        version: api.Version,
        blob: api.Blob,
        *,
        threads: int = THREADS,
        progress: Progress | None = None,
    ) -> None:
        self._source, self._target = source, target
        self.version = version
        self._keys = digest.keys(source.catalog.get(version.blob_id).scope)
        self._blob = dataclasses.replace(
            blob, scope=target.scope(blob.project_id)
        )
        self._threads = threads
        self._progress = progress
        self._lock = threading.Lock()
        self._result = Result(version)
        # Of the target, from the begin of its session.
        self._bad = bad.Listed(target.catalog, ())

    def run(self) -> Result:
        """Copy it, unless it is there.

        :raises Conflict: something in the target stands against it
        :raises ChunkCorrupt: it is damaged in the source
        :raises NotFound: it was deleted meanwhile, or has lost something
        """
        result = self._result
        there = self.received()
        if there is not None:
            result.version, result.is_new = there, False
        else:
            try:
                if self._is_rekeyed:
                    result.version = self._copy_contents()
                else:
                    result.version = self._copy_objects()
            except (exceptions.ChunkCorrupt, exceptions.NotFound) as exc:
                raise self._lost(exc) from exc
        self._tell(self.version.size_bytes)
        return result

    # For a plan

    def received(self) -> api.Version | None:
        """The version there, if it is. :raises Conflict: as :meth:`run`"""
        version = self.version
        there = self._target.catalog.received(self._blob, version)
        if (
            there is not None
            and not self._is_rekeyed
            and there.root != version.root
        ):
            raise exceptions.Conflict(
                f'version {version.number} of blob "{self._blob.id}" has '
                f'another content there than here; copy it under another name'
            )
        return there

    def names(self, before: trees.Tree | None = None) -> Names:
        """What might travel, by its name in the source.

        Nothing is changed meanwhile, so nothing is promised.

        :param before: what will have been copied by then
        """
        tree = self.tree()
        if self._is_rekeyed:
            return trees.added(before, tree, _CHUNKS)
        return self._added(before or self._base(tree), tree)

    def is_there(self, name: bytes) -> bool:
        """Whether the target has it, so that it need not travel."""
        return not self._is_rekeyed and self._target.store.has(name)

    def tree(self) -> trees.Tree:
        """The version's manifest, in the source."""
        return self._source.tree(self.version.root, self._keys.scope)

    @property
    def _is_rekeyed(self) -> bool:
        return self._keys.scope != self._blob.scope

    def _lost(self, exc: exceptions.LazyBlobError) -> Exception:
        version = self.version
        what = f'version {version.number} of blob "{version.blob_id}"'
        try:
            self._source.catalog.version(version.blob_id, version.number)
        except exceptions.NotFound:
            return exceptions.NotFound(f'{what} was deleted meanwhile')
        return type(exc)(
            f'{what} was not copied: {exc}; "lazyimage verify" tells what it '
            f'has lost'
        )

    # As objects

    def _copy_objects(self) -> api.Version:
        with sessions.Session(self._target.catalog) as session:
            self._bad = session.bad
            tree = self.tree()
            base = None if self._bad else self._base(tree)
            try:
                self._put_objects(base, tree)
            except (exceptions.ChunkCorrupt, exceptions.NotFound):
                if base is None:
                    raise
                # Is it the base that is damaged? Then do without.
                base = None
                self._put_objects(base, tree)
            # What was put, and what was found.
            self._target.store.sync(
                name for _first, name in self._added(base, tree)
            )
            self._bad.mended()
            return self._receive(self.version.root, session.id)

    def _put_objects(self, base: trees.Tree | None, tree: trees.Tree) -> None:
        """Everything that the base does not reach, from the bottom up."""
        size_bytes = tree.descriptor.chunk_size_bytes
        carry = functools.partial(self._carry, chunk.Kind.CHUNK, size_bytes)
        for level in range(_CHUNKS, tree.descriptor.depth):
            # All of a level is there before the first of the next begins.
            self._each(carry, trees.added(base, tree, level), level)
            carry = functools.partial(
                self._carry, chunk.Kind.NODE, manifest.NODE_BYTES_MAX
            )
        root = bytes.fromhex(self.version.root)
        self._carry(chunk.Kind.DESCRIPTOR, manifest.DESCRIPTOR_BYTES, 0, root)

    def _carry(
        self, kind: chunk.Kind, size_max: int, _first: int, name: bytes
    ) -> None:
        is_bad = name in self._bad
        if not is_bad and self._target.store.has(name):
            with self._lock:
                self._result.found_objects += 1
            return
        data, _content = self._read(name, kind, size_max)
        if is_bad:
            self._target.store.replace(name, data)
            self._bad.replaced(name)
        else:
            self._target.store.put(name, data)
        with self._lock:
            self._result.copied_objects += 1
            self._result.copied_bytes += len(data)

    def _read(
        self, name: bytes, kind: chunk.Kind, size_bytes_max: int
    ) -> tuple[bytes, bytes]:
        """An object of the source and its content, verified."""
        key = {
            chunk.Kind.CHUNK: self._keys.chunk,
            chunk.Kind.NODE: self._keys.node,
            chunk.Kind.DESCRIPTOR: self._keys.descriptor,
        }[kind]
        data = self._source.store.get(
            name, chunk.object_bytes_max(size_bytes_max)
        )
        content = chunk.unpack(data, name, key, kind, size_bytes_max)
        if kind == chunk.Kind.CHUNK and len(content) != size_bytes_max:
            raise exceptions.ChunkCorrupt(
                f'"{name.hex()}": holds {len(content)} bytes and not a chunk '
                f'of {size_bytes_max}'
            )
        return data, content

    def _added(self, base: trees.Tree | None, tree: trees.Tree) -> Names:
        """Everything that the base does not reach, nodes read as needed."""
        for level in range(_CHUNKS, tree.descriptor.depth):
            yield from trees.added(base, tree, level)
        yield 0, bytes.fromhex(self.version.root)

    def _base(self, tree: trees.Tree) -> trees.Tree | None:
        """A version of the target that probably shares much with ours.

        To be asked for within a session: what it reaches is there until the
        session ends.
        """
        for candidate in self._candidates():
            with contextlib.suppress(
                exceptions.NotFound, exceptions.ChunkCorrupt
            ):
                blob = self._target.catalog.get(candidate.blob_id)
                found = self._target.tree(candidate.root, blob.scope)
                if (
                    blob.scope == self._blob.scope
                    and found.descriptor.chunk_size_bytes
                    == tree.descriptor.chunk_size_bytes
                ):
                    return found
        return None

    def _candidates(self) -> Iterator[api.Version]:
        """The same blob's nearest version, then what it was cloned from."""
        blob, number = self._blob, self.version.number
        with contextlib.suppress(exceptions.NotFound):
            found = self._target.catalog.versions(blob.id)
            yield from sorted(found, key=lambda v: abs(v.number - number))[:1]
        for _ in range(_ORIGINS_MAX):
            if not blob.origin:
                return
            with contextlib.suppress(exceptions.NotFound):
                yield self._target.catalog.version(
                    blob.origin, blob.origin_version
                )
            try:
                blob = self._source.catalog.get(blob.origin)
            except exceptions.NotFound:
                return

    # As contents

    def _copy_contents(self) -> api.Version:
        before = self._before()
        try:
            return self._commit(before)
        except exceptions.NotFound:
            if before is None:
                raise
            # It was deleted meanwhile, here or there.
            return self._commit(None)

    def _before(self) -> tuple[api.Version, api.Version] | None:
        """The version before ours that both have: as here, and as there."""
        target, blob_id = self._target.catalog, self.version.blob_id
        for version in reversed(self._source.catalog.versions(blob_id)):
            if version.number < self.version.number:
                with contextlib.suppress(
                    exceptions.Conflict, exceptions.NotFound
                ):
                    there = target.received(self._blob, version)
                    if there is not None:
                        return version, there
        return None

    def _commit(
        self, before: tuple[api.Version, api.Version] | None
    ) -> api.Version:
        tree = self.tree()
        old, parent = None, None
        if before is not None:
            old = self._source.tree(before[0].root, self._keys.scope)
            parent = self._target.manifest(before[1].root, self._blob.scope)
        size_bytes = self.version.size_bytes
        with self._target.commit(
            self._blob, parent, size_bytes=size_bytes
        ) as target:
            if before is not None:
                # Now that the session stands (contract 31).
                self._target.catalog.version(self._blob.id, before[1].number)
                for found in trees.diff(old or tree, tree):
                    if found.after is None:
                        zeros = chunk.zeros(target.chunk_size_bytes)
                        target.put(found.index, zeros)

            def put(index: int, name: bytes) -> None:
                _data, content = self._read(
                    name, chunk.Kind.CHUNK, target.chunk_size_bytes
                )
                target.put(index, content)

            self._each(put, trees.added(old, tree, _CHUNKS), _CHUNKS)
            root = target.finish()
            result, counted = self._result, target.statistics
            result.copied_objects = counted.stored_chunks
            result.copied_bytes = counted.written_bytes
            result.found_objects = counted.known_chunks
            return self._receive(root, target.session_id)

    # Both

    def _receive(self, root: str, session_id: str) -> api.Version:
        version = dataclasses.replace(
            self.version, blob_id=self._blob.id, root=root
        )
        return patience.repeat(
            lambda: self._target.catalog.receive(
                self._blob, version, session_id=session_id
            )
        )

    def _each(
        self, work: Callable[[int, bytes], object], names: Names, level: int
    ) -> None:
        def tell(item: tuple[int, bytes]) -> None:
            end = (item[0] + 1) * self._blob.chunk_size_bytes
            self._tell(min(end, self.version.size_bytes))

        parallel.each(
            lambda item: work(*item),
            names,
            threads=self._threads,
            name='copy',
            done=tell if level == _CHUNKS else None,
        )

    def _tell(self, size_bytes: int) -> None:
        if self._progress is not None:
            self._progress(size_bytes)
