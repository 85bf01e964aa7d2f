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
"""Writing a version: chunks first, then nodes bottom-up, then a sync.

The last step is the catalog's publish. It names the session that stands here
from before the first look at the store, so that the collector spares what
this commit relies on (contract 31), and ends it; without a publish
:meth:`Commit.close` does.

An import reads back what the store says it has already, and replaces what is
not what its digest names: its source is at hand this once. A COMMIT believes
the store, as far as its plausible lengths go. Both overwrite what the catalog
lists as bad (:mod:`lazyblob.bad`); the listing goes after the sync.

Crash: at any point it leaves objects that no version reaches, which the
collector removes, and nothing else.

Threads: :meth:`Commit.put` may be called by all of them at once; the rest by
one, after them.
"""

import concurrent.futures
import dataclasses
import enum
import logging
import threading
from collections.abc import Iterator
from types import TracebackType

from lazyblob import asking
from lazyblob import changing
from lazyblob import chunk
from lazyblob import digest
from lazyblob import exceptions
from lazyblob import manifest
from lazyblob import sessions
from lazyblob import tree as trees
from lazyblob.catalog import api
from lazyblob.chunk_store import base

LOG = logging.getLogger(__name__)
_NODE_THREADS = 4


class Outcome(str, enum.Enum):
    """What became of a chunk."""

    __str__ = str.__str__

    ZERO = 'zero'  # a hole now
    UNCHANGED = 'unchanged'  # as in the parent
    KNOWN = 'known'  # the store has it from elsewhere
    STORED = 'stored'


@dataclasses.dataclass
class Statistics:
    """Counts and uncompressed bytes of chunks by outcome.

    :ivar replaced_objects: of the stored ones and of nodes, those that the
        store had, but not as their digest names them, or that were listed
    :ivar written_bytes: what the store received, headers and nodes included
    """

    zero_chunks: int = 0
    zero_bytes: int = 0
    unchanged_chunks: int = 0
    unchanged_bytes: int = 0
    known_chunks: int = 0
    known_bytes: int = 0
    stored_chunks: int = 0
    stored_bytes: int = 0
    replaced_objects: int = 0
    written_bytes: int = 0

    def add(self, outcome: Outcome, size_bytes: int, count: int = 1) -> None:
        for unit, more in (('chunks', count), ('bytes', size_bytes)):
            field = f'{outcome}_{unit}'
            setattr(self, field, getattr(self, field) + more)


class Commit:
    """One version in the making.

    :param parent: what the chunks that are not put are taken from; as a tree
        it is read where something changes, and nowhere else
    :param size_bytes: of the new version; None: told to :meth:`finish`
    :param reads_back: whether what is there already is read and compared
    :ivar session_id: what the catalog has to be told
    """

    def __init__(
        self,
        catalog: api.Catalog,
        store: base.ChunkStore,
        keys: digest.Keys,
        chunk_size_bytes: int,
        parent: manifest.Manifest | trees.Tree | None = None,
        *,
        size_bytes: int | None = None,
        owner: str = '',
        reads_back: bool = False,
    ) -> None:
        if isinstance(parent, manifest.Manifest):
            parent = trees.of(parent, keys)
        if parent is not None:
            found = parent.descriptor
            if found.chunk_size_bytes != chunk_size_bytes:
                raise exceptions.Conflict(
                    f'chunk size is {chunk_size_bytes} bytes and the '
                    f'parent\'s is {found.chunk_size_bytes}'
                )
            if size_bytes is not None and size_bytes < found.size_bytes:
                raise exceptions.InvalidConfiguration(
                    f'size of {size_bytes} bytes is less than the parent\'s '
                    f'{found.size_bytes}; a disk can only grow'
                )
        self.chunk_size_bytes = chunk_size_bytes
        self.statistics = Statistics()
        self._catalog = catalog
        self._store = store
        self._keys = keys
        self._size_bytes = size_bytes
        self._reads_back = reads_back
        self._guess = asking.Guess(is_remote=store.is_remote)
        self._builder = changing.Builder(parent)
        self._lock = threading.Lock()
        self._session = sessions.Session(catalog, owner)
        self.session_id = self._session.id
        self._bad = self._session.bad

    def put(self, index: int, data: digest.Buffer) -> Outcome:
        """Store a whole chunk, unless it is there or need not be.

        :raises StoreError: it may be put again, or the commit aborted
        """
        if len(data) != self.chunk_size_bytes:
            raise ValueError(
                f'a chunk has {self.chunk_size_bytes} bytes, not {len(data)}'
            )
        written_bytes = 0
        if chunk.is_zero(data):
            outcome, name = Outcome.ZERO, None
        else:
            name = digest.of(data, self._keys.chunk)
            is_parents = self._builder.get(index) == name
            if is_parents and name not in self._bad:
                outcome = Outcome.UNCHANGED
            else:
                written_bytes = self._put(name, data, chunk.Kind.CHUNK)
                outcome = Outcome.STORED if written_bytes else Outcome.KNOWN
        # Only now: a chunk that failed must not stand in the manifest.
        self._builder.set(index, name)
        with self._lock:
            self.statistics.add(outcome, len(data))
            self.statistics.written_bytes += written_bytes
        return outcome

    def skip_hole(self, size_bytes: int) -> None:
        """Account for whole chunks of zeros that nobody had to read.

        Only without a parent, where every chunk begins as a hole.
        """
        with self._lock:
            self.statistics.add(
                Outcome.ZERO, size_bytes, size_bytes // self.chunk_size_bytes
            )

    def finish(self, size_bytes: int | None = None) -> str:
        """Write the manifest and make everything durable.

        :returns: the root digest, hexadecimal, for :meth:`publish`
        """
        if size_bytes is None:
            size_bytes = self._size_bytes
        if size_bytes is None:
            raise ValueError('a commit needs a size')
        encoded = self._builder.finish(
            size_bytes, self.chunk_size_bytes, self._keys
        )
        for level, nodes in _by_level(encoded.nodes):
            LOG.debug('Writing %d nodes of level %d', len(nodes), level)
            self._put_nodes(nodes)
        self.statistics.written_bytes += self._put(
            encoded.root, encoded.descriptor, chunk.Kind.DESCRIPTOR
        )
        self._store.sync(self._names(encoded))
        self._bad.mended()
        return encoded.root.hex()

    def _names(self, encoded: manifest.Encoded) -> Iterator[bytes]:
        """What was put or found; what the parent has is durable already."""
        yield from self._builder.entries()
        for name, _node in encoded.nodes:
            yield name
        yield encoded.root

    def publish(
        self,
        blob_id: str,
        *,
        epoch: int,
        parent: int,
        commit_id: str,
        root: str,
        size_bytes: int,
        secret: str = '',
        image: api.NewImage | None = None,
        drop_parent: bool = False,
    ) -> api.Version:
        """Make it a version, which is the end of the session, too.

        May be called again if the outcome is not known. See
        :meth:`lazyblob.catalog.api.Catalog.publish`.

        :param root: what :meth:`finish` returned
        """
        version = self._catalog.publish(
            blob_id,
            epoch=epoch,
            parent=parent,
            commit_id=commit_id,
            root=root,
            size_bytes=size_bytes,
            session_id=self.session_id,
            secret=secret,
            image=image,
            drop_parent=drop_parent,
            ends_session=True,
        )
        self._session.has_ended()
        return version

    def abort(self) -> None:
        """Give it up; what was stored is garbage."""
        self.close()

    def close(self) -> None:
        """End the session, if no publish has."""
        self._session.close()

    def __enter__(self) -> 'Commit':
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _put(
        self, name: bytes, content: digest.Buffer, kind: chunk.Kind
    ) -> int:
        """How many bytes the store received: none of what it has."""
        if name in self._bad:
            try:
                return self._replace_listed(name, content, kind)
            except exceptions.StoreDenied as exc:
                # An agent need not have the right (contract 34).
                self._bad.give_up(exc)
        is_chunk = kind == chunk.Kind.CHUNK
        if is_chunk:
            asks = self._guess.asks_first()
        else:
            # Of nodes nobody need ask: there are few, and a put looks. But a
            # put into files refuses one that is there and cannot be read.
            asks = self._reads_back and not self._store.is_remote
        is_there = asks and self._is_there(name)
        parts: tuple[digest.Buffer, ...] = ()
        if not is_there:
            parts = self._packed(content, kind)
            is_there = self._store.put(name, *parts) is False
        if is_chunk:
            self._guess.learn(was_known=is_there)
        if not is_there:
            return sum(map(len, parts))
        if not self._reads_back or self._holds(name, content, kind):
            return 0
        LOG.warning(
            '"%s" was damaged in "%s"; replacing it',
            name.hex(),
            self._store.url,
        )
        parts = parts or self._packed(content, kind)
        self._store.replace(name, *parts)
        with self._lock:
            self.statistics.replaced_objects += 1
        return sum(map(len, parts))

    def _is_there(self, name: bytes) -> bool:
        try:
            return self._store.has(name)
        except exceptions.StoreError as exc:
            if not self._reads_back or _may_pass(exc):
                raise
            return True  # and cannot be read: reading it back will tell

    def _packed(
        self, content: digest.Buffer, kind: chunk.Kind
    ) -> tuple[digest.Buffer, ...]:
        return chunk.packed(content, kind, is_project=self._keys.is_project)

    def _replace_listed(
        self, name: bytes, content: digest.Buffer, kind: chunk.Kind
    ) -> int:
        """Overwrite what is listed as bad. :raises StoreDenied:"""
        parts = self._packed(content, kind)
        self._store.replace(name, *parts)
        LOG.warning('"%s" was listed as bad; replaced it', name.hex())
        self._bad.replaced(name)
        with self._lock:
            self.statistics.replaced_objects += 1
        return sum(map(len, parts))

    def _holds(
        self, name: bytes, content: digest.Buffer, kind: chunk.Kind
    ) -> bool:
        """Whether the store's object has this content."""
        size_bytes = len(content)
        key = {
            chunk.Kind.CHUNK: self._keys.chunk,
            chunk.Kind.NODE: self._keys.node,
            chunk.Kind.DESCRIPTOR: self._keys.descriptor,
        }[kind]
        try:
            data = self._store.get(name, chunk.object_bytes_max(size_bytes))
            chunk.unpack(data, name, key, kind, size_bytes)
            return True
        except exceptions.NotFound:
            return False
        except exceptions.StoreError as exc:
            if _may_pass(exc):
                raise
            return False

    def _put_nodes(self, nodes: list[tuple[bytes, bytes]]) -> None:
        def write(pair: tuple[bytes, bytes]) -> int:
            return self._put(pair[0], pair[1], chunk.Kind.NODE)

        if len(nodes) == 1:
            self.statistics.written_bytes += write(nodes[0])
            return
        with concurrent.futures.ThreadPoolExecutor(
            _NODE_THREADS, thread_name_prefix='nodes'
        ) as pool:
            self.statistics.written_bytes += sum(pool.map(write, nodes))


def _may_pass(exc: exceptions.StoreError) -> bool:
    """Whether the object may be sound, though it is not to be had now."""
    return isinstance(
        exc, exceptions.TemporaryStoreError | exceptions.StoreDenied
    )


def _by_level(
    nodes: list[tuple[bytes, bytes]],
) -> Iterator[tuple[int, list[tuple[bytes, bytes]]]]:
    """Bottom-up: a node's first byte is its level."""
    for level in range(manifest.DEPTH_MAX + 1):
        found = [pair for pair in nodes if pair[1][0] == level]
        if found:
            yield level, found
