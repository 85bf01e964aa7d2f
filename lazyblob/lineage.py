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
"""Lineage: which blob came of which version, as a tree.

A clone remembers what it was cloned from, a snapshot the disk that it was
taken of. What was deleted is passed over with its id only, or, a disk, not at
all: then a branch begins with what came of it.

Ids of disks may be used again, so a lineage can look like a ring; each blob
is told once.
"""

import dataclasses
from collections.abc import Iterator

from lazyblob import exceptions
from lazyblob.catalog import api


@dataclasses.dataclass(frozen=True)
class Entry:
    """A blob in its place in the tree.

    :ivar depth: 0 for what came of nothing that is known
    """

    depth: int
    blob: api.Blob
    versions: list[api.Version]


def history(catalog: api.Catalog, blob_id: str) -> Iterator[Entry]:
    """The tree that a blob is part of, from its oldest ancestor on.

    :raises NotFound: no such blob
    """
    oldest = catalog.get(blob_id)
    seen = {oldest.id}
    while oldest.origin and oldest.origin not in seen:
        try:
            oldest = catalog.get(oldest.origin)
        except exceptions.NotFound:
            break
        seen.add(oldest.id)
    told: set[str] = set()
    # No recursion: a clone of a clone of a clone may be thousands deep.
    waiting = [(0, oldest)]
    while waiting:
        depth, blob = waiting.pop()
        if blob.id in told:
            continue
        told.add(blob.id)
        is_deleted = blob.state is api.State.TOMBSTONE
        versions = [] if is_deleted else _versions(catalog, blob.id)
        yield Entry(depth, blob, versions)
        children = catalog.clones(blob.id)
        waiting += [(depth + 1, child) for child in reversed(children)]


def roots(catalog: api.Catalog) -> list[str]:
    """Blobs whose origin is nothing that is known, the oldest first."""
    blobs = catalog.list_blobs()
    known = {blob.id for blob in blobs}
    return [blob.id for blob in blobs if blob.origin not in known]


def _versions(catalog: api.Catalog, blob_id: str) -> list[api.Version]:
    try:
        return catalog.versions(blob_id)
    except exceptions.NotFound:
        return []  # Deleted in this moment.
