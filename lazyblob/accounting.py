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
"""Who takes how much: what a version alone holds, and what others share.

Each node and chunk has at most one *owner* here, the version that reaches it;
once a second one does, it is shared. A subtree that was seen to be shared, or
to be this version's, is not read again, so the work grows with the distinct
nodes and not with versions times disks.

Memory is bounded: objects, owners and sums live in a temporary SQLite
database on disk (in ``$TMPDIR``) with a cache of its own; what stays in memory
is a row a version.

What is published or deleted meanwhile may be counted or missed.

Threads: one.
"""

import dataclasses
import pathlib
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator

from lazyblob import exceptions
from lazyblob import manifest
from lazyblob import tree as trees
from lazyblob.catalog import api

_BATCH = 1000
_CACHE_KIB = 64 * 1024
_NOBODY = -1
_SHARED = -2

_TABLES = """
CREATE TABLE objects (
    digest BLOB PRIMARY KEY,
    stored_bytes INTEGER NOT NULL,
    version INTEGER NOT NULL,
    blob INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE subtrees (
    digest BLOB PRIMARY KEY,
    chunks INTEGER NOT NULL,
    stored_bytes INTEGER NOT NULL
) WITHOUT ROWID;
"""


@dataclasses.dataclass
class Usage:
    """What a version takes.

    :ivar logical_bytes: the disk's size
    :ivar mapped_bytes: without its holes, uncompressed
    :ivar stored_bytes: of what it refers to, as the store has it: manifest
        and chunks, a chunk that it has twice counted twice
    :ivar unique_bytes: of what goes if this version goes
    :ivar shared_bytes: the rest: other versions refer to it too
    :ivar blob_bytes: of what goes if its whole blob goes; the same for all
        versions of a blob
    """

    blob_id: str
    number: int
    logical_bytes: int
    mapped_bytes: int = 0
    stored_bytes: int = 0
    unique_bytes: int = 0
    shared_bytes: int = 0
    blob_bytes: int = 0


@dataclasses.dataclass
class Account:
    """The whole repository.

    :ivar physical_bytes: what the store holds, each object once
    :ivar unreferenced_bytes: of it, what no version reaches: the
        collector's, or a commit's that is under way
    :ivar missing_objects: what a version reaches and the store lacks
    """

    logical_bytes: int = 0
    physical_bytes: int = 0
    unreferenced_bytes: int = 0
    unreferenced_objects: int = 0
    missing_objects: int = 0
    versions: list[Usage] = dataclasses.field(default_factory=list)


def all_versions(catalog: api.Catalog) -> Iterator[api.Version]:
    """Every version of every blob, page by page."""
    page = catalog.list_versions(limit=_BATCH)
    while page:
        yield from page
        page = catalog.list_versions(
            page[-1].blob_id, page[-1].number, limit=_BATCH
        )


def scoped(
    catalog: api.Catalog,
    scope_of: Callable[[str], str],
    blob_id: str | None = None,
    number: int | None = None,
) -> Iterator[tuple[api.Version, str]]:
    """Versions with the scopes of their digests: one, or all.

    :param blob_id: None: every version of every blob
    :param number: None: the blob's newest
    """
    found: Iterable[api.Version] = (
        all_versions(catalog)
        if blob_id is None
        else [catalog.version(blob_id, number)]
    )
    for version in found:
        try:
            scope = scope_of(version.blob_id)
        except exceptions.NotFound:
            continue  # Deleted since its page was read.
        yield version, scope


def account(
    catalog: api.Catalog,
    objects: Iterable[tuple[bytes, int]],
    open_tree: Callable[[api.Version], trees.Tree],
    progress: Callable[[int], None] | None = None,
) -> Account:
    """:param objects: digest and stored size of all that the store has

    :param open_tree: a version's manifest
    :param progress: called with the versions done so far
    :raises NotFound: the store lacks a node
    """
    with tempfile.TemporaryDirectory(prefix='lazyblob-du') as folder:
        books = _Books(pathlib.Path(folder) / 'books')
        try:
            books.enter(objects)
            return _account(books, catalog, open_tree, progress)
        finally:
            books.close()


def _account(
    books: '_Books',
    catalog: api.Catalog,
    open_tree: Callable[[api.Version], trees.Tree],
    progress: Callable[[int], None] | None,
) -> Account:
    found = Account()
    blobs: dict[str, int] = {}
    for version in all_versions(catalog):
        try:
            tree = open_tree(version)
        except exceptions.NotFound:
            if not is_there(catalog, version.blob_id, version.number):
                continue  # Deleted since its page was read.
            raise
        blob = blobs.setdefault(version.blob_id, len(blobs))
        walk = _Walk(books, tree, len(found.versions), blob)
        usage = Usage(version.blob_id, version.number, version.size_bytes)
        chunks, usage.stored_bytes = walk.root(bytes.fromhex(version.root))
        usage.mapped_bytes = chunks * tree.descriptor.chunk_size_bytes
        found.logical_bytes += usage.logical_bytes
        found.missing_objects += walk.missing
        found.versions.append(usage)
        if progress is not None:
            progress(len(found.versions))
    by_version, by_blob = books.sums('version'), books.sums('blob')
    for number, usage in enumerate(found.versions):
        usage.unique_bytes = by_version.get(number, (0, 0))[1]
        usage.shared_bytes = max(0, usage.stored_bytes - usage.unique_bytes)
        usage.blob_bytes = by_blob.get(blobs[usage.blob_id], (0, 0))[1]
    unreferenced = by_version.get(_NOBODY, (0, 0))
    found.unreferenced_objects, found.unreferenced_bytes = unreferenced
    found.physical_bytes = sum(size for _, size in by_version.values())
    return found


def is_there(catalog: api.Catalog, blob_id: str, number: int) -> bool:
    """Whether a version still exists."""
    try:
        catalog.version(blob_id, number)
    except exceptions.NotFound:
        return False
    return True


class _Books:
    """Objects by digest: size, and who reaches them."""

    def __init__(self, path: pathlib.Path) -> None:
        self._database = sqlite3.connect(path, isolation_level=None)
        run = self._database.execute
        # It is gone with the process: nothing has to be durable.
        run('PRAGMA journal_mode=OFF')
        run('PRAGMA synchronous=OFF')
        run(f'PRAGMA cache_size=-{_CACHE_KIB}')
        self._database.executescript(_TABLES)
        run('BEGIN')

    def close(self) -> None:
        self._database.close()

    def enter(self, objects: Iterable[tuple[bytes, int]]) -> None:
        self._database.executemany(
            'INSERT OR IGNORE INTO objects VALUES (?, ?, ?, ?)',
            ((name, size, _NOBODY, _NOBODY) for name, size in objects),
        )

    def look(self, names: list[bytes]) -> dict[bytes, tuple[int, int, int]]:
        """Size and owners of those that are there."""
        marks = ','.join('?' * len(names))
        rows = self._database.execute(
            'SELECT digest, stored_bytes, version, blob FROM objects '  # noqa: S608
            f'WHERE digest IN ({marks})',
            names,
        )
        return {name: (size, v, b) for name, size, v, b in rows}

    def own(self, owners: Iterable[tuple[int, int, bytes]]) -> None:
        self._database.executemany(
            'UPDATE objects SET version = ?, blob = ? WHERE digest = ?', owners
        )

    def add_missing(self, names: Iterable[bytes]) -> None:
        self.enter((name, 0) for name in names)

    def subtree(self, name: bytes) -> tuple[int, int] | None:
        """Chunks and stored bytes below a node, if they were summed up."""
        found: tuple[int, int] | None = self._database.execute(
            'SELECT chunks, stored_bytes FROM subtrees WHERE digest = ?',
            (name,),
        ).fetchone()
        return found

    def remember(self, name: bytes, chunks: int, stored_bytes: int) -> None:
        self._database.execute(
            'INSERT OR REPLACE INTO subtrees VALUES (?, ?, ?)',
            (name, chunks, stored_bytes),
        )

    def sums(self, column: str) -> dict[int, tuple[int, int]]:
        """Number and bytes of objects by owner."""
        rows = self._database.execute(
            f'SELECT {column}, COUNT(*), SUM(stored_bytes) '  # noqa: S608
            f'FROM objects GROUP BY {column}'
        )
        return {owner: (count, size) for owner, count, size in rows}


class _Walk:
    """One version's manifest, as far as it is new."""

    def __init__(
        self, books: _Books, tree: trees.Tree, version: int, blob: int
    ) -> None:
        self.missing = 0
        self._books = books
        self._tree = tree
        self._version = version
        self._blob = blob

    def root(self, name: bytes) -> tuple[int, int]:
        """Chunks and stored bytes of the whole version."""
        descriptor = self._tree.descriptor
        sizes, _ = self._mark([name])
        if descriptor.tree == manifest.HOLE:
            return 0, sizes[name]
        chunks, stored_bytes = self._node(
            descriptor.tree, descriptor.depth - 1, 0
        )
        return chunks, sizes[name] + stored_bytes

    def _node(self, name: bytes, level: int, first: int) -> tuple[int, int]:
        sizes, is_known = self._mark([name])
        summed = self._books.subtree(name)
        if is_known and summed is not None:
            return summed
        table = self._tree.table(name, level, first)
        entries = [
            table[at : at + 32] for at in range(0, manifest.TABLE_BYTES, 32)
        ]
        chunks, stored_bytes = 0, sizes[name]
        if level == 0:
            names = [entry for entry in entries if entry != manifest.HOLE]
            sizes, _ = self._mark(names)
            chunks = len(names)
            stored_bytes += sum(sizes[entry] for entry in names)
        else:
            shift = manifest.FANOUT_BITS * level
            for slot, entry in enumerate(entries):
                if entry != manifest.HOLE:
                    more = self._node(
                        entry, level - 1, first + (slot << shift)
                    )
                    chunks += more[0]
                    stored_bytes += more[1]
        self._books.remember(name, chunks, stored_bytes)
        return chunks, stored_bytes

    def _mark(self, names: list[bytes]) -> tuple[dict[bytes, int], bool]:
        """Their sizes; whether all are marked for this version already."""
        known = self._books.look(names)
        missing = {name for name in names if name not in known}
        if missing:
            self.missing += len(missing)
            self._books.add_missing(missing)
            known |= {name: (0, _NOBODY, _NOBODY) for name in missing}
        changed = []
        for name, (_, version, blob) in known.items():
            owners = _owner(version, self._version), _owner(blob, self._blob)
            if owners != (version, blob):
                changed.append((*owners, name))
        self._books.own(changed)
        return {name: found[0] for name, found in known.items()}, not changed


def _owner(before: int, me: int) -> int:
    return me if before in (_NOBODY, me) else _SHARED
