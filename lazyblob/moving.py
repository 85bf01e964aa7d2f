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
"""Whether a chunk store holds what a catalog needs: before it is believed.

Asked when somebody says that a repository's chunks lie elsewhere now. A typing
error must not make a repository of versions that nobody can read. It is a
sample and no proof: of some versions, drawn by chance, the descriptor and one
way down the manifest are read, and a chunk is looked for. ``lazyimage
verify`` is the proof.

Threads: one.
"""

import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING

from lazyblob import accounting
from lazyblob import digest
from lazyblob import exceptions
from lazyblob import manifest
from lazyblob import tree as trees
from lazyblob.catalog import api

if TYPE_CHECKING:
    from lazyblob import repository

SAMPLE_VERSIONS = 200


def check(
    repo: 'repository.Repository',
    progress: Callable[[int], None] | None = None,
) -> None:
    """:param progress: called with the versions looked at so far

    :raises Conflict: the store lacks something, or has it damaged
    """
    try:
        sample = _sample(repo.catalog)
    except exceptions.NotFound:
        return  # No repository yet: it needs nothing.
    for count, version in enumerate(sample, 1):
        try:
            _look(repo, version)
        except (exceptions.NotFound, exceptions.ChunkCorrupt) as exc:
            if _is_there(repo.catalog, version):
                raise exceptions.Conflict(
                    f'chunk store "{repo.store.url}" does not hold what '
                    f'version {version.number} of blob "{version.blob_id}" '
                    f'needs ({exc}), so nothing was changed; copy everything '
                    f'there first, or say --allow-missing if a part of it is '
                    f'lost'
                ) from exc
        if progress is not None:
            progress(count)


def _sample(catalog: api.Catalog) -> list[api.Version]:
    """So many versions, each as likely as the others."""
    found: list[api.Version] = []
    for count, version in enumerate(accounting.all_versions(catalog)):
        if len(found) < SAMPLE_VERSIONS:
            found.append(version)
        elif (slot := secrets.randbelow(count + 1)) < SAMPLE_VERSIONS:
            found[slot] = version
    return found


def _look(repo: 'repository.Repository', version: api.Version) -> None:
    scope = repo.catalog.get(version.blob_id).scope
    name = _some_chunk(repo.tree(version.root, scope))
    if name is not None and not repo.store.has(name):
        raise exceptions.NotFound(f'"{name.hex()}" is not there')


def _some_chunk(tree: trees.Tree) -> bytes | None:
    """A chunk, by a way down that chance finds; None: all are holes."""
    name, first = tree.descriptor.tree, 0
    for level in reversed(range(tree.descriptor.depth)):
        if name == manifest.HOLE:
            return None
        table = tree.table(name, level, first)
        present = [
            (slot, entry)
            for slot in range(manifest.FANOUT)
            if (entry := _entry(table, slot)) != manifest.HOLE
        ]
        slot, name = secrets.choice(present)
        first += slot << (manifest.FANOUT_BITS * level)
    return None if name == manifest.HOLE else name


def _entry(table: bytes, slot: int) -> bytes:
    at = slot * digest.SIZE_BYTES
    return table[at : at + digest.SIZE_BYTES]


def _is_there(catalog: api.Catalog, version: api.Version) -> bool:
    try:
        catalog.version(version.blob_id, version.number)
    except exceptions.NotFound:
        return False
    return True
