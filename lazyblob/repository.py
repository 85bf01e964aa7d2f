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
"""The one face of a repository: chunk store and catalog, and what they do.

Order of writes: chunks, then manifest nodes bottom-up, then a sync of the
store, then the catalog's row. A crash between any two steps leaves garbage
that the collector finds, never a version that cannot be read. Deleting drops
the row; objects go only through the collector.

Threads: one instance serves them all. Nothing connects before it is used.
"""

import functools
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lazyblob import accounting
from lazyblob import chunk
from lazyblob import commit as committing
from lazyblob import creating
from lazyblob import digest
from lazyblob import exceptions
from lazyblob import exporting
from lazyblob import growing
from lazyblob import importing
from lazyblob import manifest as manifests
from lazyblob import moving
from lazyblob import plugins
from lazyblob import reader as readers
from lazyblob import repairing
from lazyblob import survey
from lazyblob import tree as trees
from lazyblob import verifying
from lazyblob.catalog import api
from lazyblob.chunk_store import base

DEDUPE_SCOPES = ('repository', 'project')
# Of one upload and one download: files keep processors busy, which are asked
# for by name where there are more; a gateway is waited for.
UPLOAD_THREADS = 2
DOWNLOAD_THREADS = 4
REMOTE_THREADS = 8

Hole = importing.Hole


def urls_of(url: str) -> tuple[str, str]:
    """The chunk store and catalog of a repository in one folder.

    :param url: ``file:///folder``
    :raises InvalidConfiguration: not such a URL
    """
    from lazyblob.chunk_store import file

    path = file.path_of(url)
    return (path / 'chunks').as_uri(), f'sqlite:///{path}/catalog.sqlite'


def initialise(
    chunk_store_url: str,
    catalog_url: str,
    *,
    dedupe_scope: str = 'repository',
    store_settings: Mapping[str, Any] | None = None,
    is_moved: bool = False,
    may_lack: bool = False,
    progress: Callable[[int], None] | None = None,
) -> 'Repository':
    """Make a repository, or bring one to this release's schema.

    Repeating it is harmless.

    :param is_moved: the chunk store of a repository that exists has another
        URL now: it got a disk more, or was copied. It is looked at first
    :param may_lack: without looking whether it holds what versions need
    :param progress: called with the versions looked at so far
    :raises Conflict: another repository is there already, or the store does
        not hold what this one needs
    """
    from lazyblob.catalog import schema

    if dedupe_scope not in DEDUPE_SCOPES:
        raise exceptions.InvalidConfiguration(
            f'dedupe scope "{dedupe_scope}" is not one of '
            f'{", ".join(DEDUPE_SCOPES)}'
        )
    store = plugins.chunk_store(chunk_store_url, store_settings)
    store.initialise()
    if is_moved and not may_lack:
        schema.upgrade(catalog_url)
        moving.check(Repository(store, plugins.catalog(catalog_url)), progress)
    schema.initialise(
        catalog_url,
        chunk_store=chunk_store_url,
        dedupe_scope=dedupe_scope,
        is_moved=is_moved,
    )
    return Repository(store, plugins.catalog(catalog_url))


def connect(
    chunk_store_url: str,
    catalog_url: str,
    *,
    transport_url: str | None = None,
    timeout_seconds: int | None = None,
    store_settings: Mapping[str, Any] | None = None,
    public_keys: Sequence[str] | None = None,
) -> 'Repository':
    """A repository that exists; nothing is connected yet.

    :param store_settings: what a chunk store is told beside its URL, by
        scheme (:func:`lazyblob.conf.store_settings`); for ``s3://`` None
        leaves it to the environment
    :param transport_url: oslo.messaging's, for a catalog over ``rpc://``
    :param timeout_seconds: how long such a catalog may take to answer
    :param public_keys: of the conductors whose answers are believed; only
        for such a catalog
    """
    return Repository(
        plugins.chunk_store(chunk_store_url, store_settings),
        plugins.catalog(
            catalog_url,
            transport_url=transport_url,
            timeout_seconds=timeout_seconds,
            public_keys=public_keys,
        ),
    )


class Repository:
    """Blobs and what is done with them."""

    def __init__(self, store: base.ChunkStore, catalog: api.Catalog) -> None:
        self.store = store
        self.catalog = catalog
        self._info: api.RepositoryInfo | None = None

    @classmethod
    def url(cls, url: str) -> 'Repository':
        """The repository in a folder: ``file:///folder``."""
        return connect(*urls_of(url))

    @property
    def info(self) -> api.RepositoryInfo:
        if self._info is None:
            self._info = self.catalog.repository()
        return self._info

    def close(self) -> None:
        self.store.close()
        self.catalog.close()

    # Reading

    def open(
        self,
        blob_id: str,
        version: int | None = None,
        *,
        threads: int | None = None,
    ) -> readers.Reader:
        """A version, or the head. :raises NotFound:"""
        blob = self.catalog.get(blob_id)
        found = self.catalog.version(blob_id, version)
        return self.reader(found.root, blob.scope, threads=threads)

    def reader(
        self,
        root: str,
        scope: str = digest.REPOSITORY_SCOPE,
        *,
        threads: int | None = None,
    ) -> readers.Reader:
        """A version by its root digest.

        :param threads: that read ahead; None: as many as suit the store
        """
        return readers.Reader(
            self.tree(root, scope),
            self._chunk_fetcher(scope),
            threads=threads or self._threads(DOWNLOAD_THREADS),
        )

    def tree(
        self, root: str, scope: str = digest.REPOSITORY_SCOPE
    ) -> trees.Tree:
        """A version's manifest, read piece by piece."""
        keys = digest.keys(scope)
        name = bytes.fromhex(root)
        content = self._unpacked(
            name,
            keys.descriptor,
            chunk.Kind.DESCRIPTOR,
            manifests.DESCRIPTOR_BYTES,
        )

        def fetch_node(name: bytes) -> bytes:
            return self._unpacked(
                name, keys.node, chunk.Kind.NODE, manifests.NODE_BYTES_MAX
            )

        return trees.Tree(manifests.Descriptor.decode(content), fetch_node)

    def manifest(
        self, root: str, scope: str = digest.REPOSITORY_SCOPE
    ) -> manifests.Manifest:
        """A version's manifest in memory.

        :param scope: the blob's
        """
        return self.tree(root, scope).load()

    def scope(self, project_id: str) -> str:
        """The dedupe scope of a project's blobs."""
        if self.info.dedupe_scope == 'project':
            return digest.project_scope(project_id)
        return digest.REPOSITORY_SCOPE

    def chunk_key(self, scope: str) -> bytes:
        """The key of chunk digests in a blob's scope."""
        return digest.keys(scope).chunk

    def fetch(self, name: bytes, chunk_size_bytes: int) -> bytes:
        """A chunk *object*, not verified, but of a length that can be.

        :raises NotFound: it is confirmed absent
        :raises ChunkCorrupt: it is larger than such a chunk's can be
        :raises StoreError: it cannot be read now
        """
        return self.store.get(name, chunk.object_bytes_max(chunk_size_bytes))

    def diff(
        self, before: api.Version, after: api.Version
    ) -> Iterator[trees.Difference]:
        """The chunks that differ; equal subtrees are not read.

        :raises Conflict: their chunk sizes or dedupe scopes differ
        """
        scopes = [
            self.catalog.get(version.blob_id).scope
            for version in (before, after)
        ]
        if scopes[0] != scopes[1]:
            raise exceptions.Conflict(
                'versions of two projects share nothing in this repository; '
                'compare exports'
            )
        return trees.diff(
            self.tree(before.root, scopes[0]),
            self.tree(after.root, scopes[1]),
        )

    def export(
        self,
        blob_id: str,
        version: int | None,
        path: str | os.PathLike[str] | pathlib.Path,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Write a version to a sparse raw file."""
        exporting.export(self.open(blob_id, version), path, progress=progress)

    def verify(
        self,
        blob_id: str | None = None,
        version: int | None = None,
        options: verifying.Options | None = None,
        progress: verifying.Progress | None = None,
    ) -> verifying.Report:
        """See that a version, or all of them, can be read back.

        What is wrong is told, and listed in the catalog; it raises nothing.

        :param blob_id: None: the whole repository
        :param options: default: everything is read
        :raises StoreError: the store does not answer
        """
        return self._survey(blob_id, version, options, progress).run()

    def repair(
        self,
        sources: Sequence[repairing.Source],
        blob_id: str | None = None,
        version: int | None = None,
        options: verifying.Options | None = None,
        progress: verifying.Progress | None = None,
        *,
        is_dry: bool = False,
    ) -> repairing.Outcome:
        """Put back what is damaged or missing, as far as a source has it.

        :param is_dry: say only what would be put back
        :raises StoreError: the store does not answer, or does not take it
        """
        return repairing.repair(
            self.store,
            self.catalog,
            lambda rescue: self._survey(
                blob_id, version, options, progress, rescue
            ),
            sources,
            is_dry=is_dry,
            progress=progress,
        )

    # Writing

    def create(
        self,
        stream: importing.Stream,
        *,
        blob_id: str,
        name: str = '',
        project_id: str = '',
        chunk_size_bytes: int = chunk.SIZE_BYTES_DEFAULT,
        size_bytes: int | None = None,
        threads: int | None = None,
        progress: importing.Progress | None = None,
        statistics: committing.Statistics | None = None,
    ) -> api.Version:
        """Stream an image in: all or nothing.

        A chunk that the store has already is read back, and replaced if it
        is damaged. The blob's row is made at the end, so that an upload that
        fails, or whose process dies, leaves nothing that stands against the
        next one.

        :param stream: bytes-like pieces of any length, :class:`Hole`, or
            extents of a file (:func:`importing.read_file`)
        :param size_bytes: what the stream must have in all, if known
        :param threads: that hash, compress and put; None: as many as suit
            the store
        :param progress: called with the bytes read so far
        :param statistics: filled in with what became of the chunks
        :raises Conflict: the id or the name is used
        :raises SizeMismatch: the stream had another size
        """
        return creating.create(
            self,
            stream,
            creating.Image(
                blob_id, name, project_id, chunk_size_bytes, size_bytes
            ),
            threads=threads or self._threads(UPLOAD_THREADS),
            progress=progress,
            statistics=statistics,
        )

    def commit(
        self,
        blob: api.Blob,
        parent: manifests.Manifest | trees.Tree | None,
        *,
        size_bytes: int,
        owner: str = '',
    ) -> committing.Commit:
        """Begin a new version of a blob; see :class:`Commit`.

        The caller puts chunks, calls ``finish``, then ``publish`` with the
        root, and ``close`` in any case (or uses ``with``).

        :param parent: its manifest, if that is in memory anyway, or its tree,
            of which no more is read than changes
        """
        return committing.Commit(
            self.catalog,
            self.store,
            digest.keys(blob.scope),
            blob.chunk_size_bytes,
            parent,
            size_bytes=size_bytes,
            owner=owner,
        )

    def clone(
        self,
        source: str,
        version: int | None = None,
        *,
        blob_id: str,
        project_id: str = '',
        kind: api.Kind = api.Kind.IMAGE,
        name: str = '',
        size_bytes: int | None = None,
    ) -> api.Version:
        """A new blob that begins as a version of another: one row.

        :param size_bytes: grow it at once; its version is 2 then. What died
            between the two is completed by calling again
        :raises InvalidConfiguration: a smaller size than the source's
        """
        if size_bytes is not None:
            growing.check(self.catalog, source, version, size_bytes)
        made = self.catalog.clone(
            source,
            version,
            blob_id=blob_id,
            kind=kind,
            project_id=project_id,
            name=name,
        )
        if size_bytes is None or size_bytes == made.size_bytes:
            return made
        return growing.grow(self, made, size_bytes)

    def account(
        self, progress: Callable[[int], None] | None = None
    ) -> accounting.Account:
        """What versions take, alone and together.

        :param progress: called with the versions done so far
        """
        scope_of = self._scopes()

        def open_tree(version: api.Version) -> trees.Tree:
            return self.tree(version.root, scope_of(version.blob_id))

        return accounting.account(
            self.catalog, self.store.list(), open_tree, progress
        )

    def delete(
        self, blob_id: str, *, project_id: str | None = None, secret: str = ''
    ) -> None:
        """Drop a blob; what nothing else reaches is the collector's."""
        self.catalog.delete(blob_id, project_id=project_id, secret=secret)

    # Inside

    def _threads(self, nearby: int) -> int:
        return REMOTE_THREADS if self.store.is_remote else nearby

    def _survey(
        self,
        blob_id: str | None,
        number: int | None,
        options: verifying.Options | None,
        progress: verifying.Progress | None,
        rescue: verifying.Rescue | None = None,
    ) -> survey.Survey:
        return survey.Survey(
            self.store,
            self.catalog,
            lambda: accounting.scoped(
                self.catalog, self._scopes(), blob_id, number
            ),
            options or verifying.Options(),
            is_whole=blob_id is None,
            rescue=rescue,
            progress=progress,
        )

    def _scopes(self) -> Callable[[str], str]:
        """A blob's scope by its id, of many that come in order."""
        if self.info.dedupe_scope == 'repository':
            return lambda blob_id: digest.REPOSITORY_SCOPE
        return functools.lru_cache(maxsize=1)(
            lambda blob_id: self.catalog.get(blob_id).scope
        )

    def _unpacked(
        self, name: bytes, key: bytes, kind: chunk.Kind, size_bytes_max: int
    ) -> bytes:
        head, stored = self.store.get_parts(
            name, chunk.object_bytes_max(size_bytes_max)
        )
        return chunk.unpack_parts(
            head, stored, name, key, kind, size_bytes_max
        )

    def _chunk_fetcher(self, scope: str) -> Callable[[bytes, int], bytes]:
        key = digest.keys(scope).chunk

        def fetch(name: bytes, size_bytes: int) -> bytes:
            content = self._unpacked(name, key, chunk.Kind.CHUNK, size_bytes)
            if len(content) != size_bytes:
                raise exceptions.ChunkCorrupt(
                    f'"{name.hex()}": holds {len(content)} bytes and not a '
                    f'chunk of {size_bytes}'
                )
            return content

        return fetch
