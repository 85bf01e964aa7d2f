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
"""An image out of a stream: its chunks, and its row at the end.

An upload that fails, or whose process dies, leaves nothing that stands
against the next one (CRASHES.rst, "Create").
"""

import dataclasses
import uuid
from typing import TYPE_CHECKING

from lazyblob import chunk
from lazyblob import commit
from lazyblob import digest
from lazyblob import exceptions
from lazyblob import importing
from lazyblob import patience
from lazyblob.catalog import api

if TYPE_CHECKING:
    from lazyblob import repository


@dataclasses.dataclass(frozen=True)
class Image:
    """What is to be made.

    :ivar size_bytes: what the stream must have in all, if known
    """

    blob_id: str
    name: str
    project_id: str
    chunk_size_bytes: int
    size_bytes: int | None


def create(
    repo: 'repository.Repository',
    stream: importing.Stream,
    image: Image,
    *,
    threads: int,
    progress: importing.Progress | None = None,
    statistics: commit.Statistics | None = None,
) -> api.Version:
    """See :meth:`lazyblob.repository.Repository.create`.

    :raises Conflict: the id or the name is used
    :raises SizeMismatch: the stream had another size
    """
    chunk.check_size(image.chunk_size_bytes)
    _refuse_used(repo.catalog, image)
    with commit.Commit(
        repo.catalog,
        repo.store,
        digest.keys(repo.scope(image.project_id)),
        image.chunk_size_bytes,
        reads_back=True,
    ) as target:
        if statistics is not None:
            target.statistics = statistics
        found_bytes = importing.write(
            stream, target, threads=threads, progress=progress
        )
        if image.size_bytes is not None and found_bytes != image.size_bytes:
            raise exceptions.SizeMismatch(
                f'image "{image.blob_id}" has {found_bytes} bytes and not '
                f'{image.size_bytes} as was said'
            )
        return _publish(repo.catalog, image, target, found_bytes)


def _publish(
    catalog: api.Catalog, image: Image, target: commit.Commit, size_bytes: int
) -> api.Version:
    """The row, and its first version; both asked for until it is known."""
    root = target.finish(size_bytes)
    blob = patience.repeat(
        lambda: catalog.create(
            image.blob_id,
            kind=api.Kind.IMAGE,
            project_id=image.project_id,
            chunk_size_bytes=image.chunk_size_bytes,
            name=image.name,
        )
    )
    commit_id = uuid.uuid4().hex
    return patience.repeat(
        lambda: target.publish(
            image.blob_id,
            epoch=blob.epoch,
            parent=blob.head,
            commit_id=commit_id,
            root=root,
            size_bytes=size_bytes,
        )
    )


def _refuse_used(catalog: api.Catalog, image: Image) -> None:
    """Early, before a long upload; the catalog decides at its end."""
    try:
        if catalog.versions(image.blob_id):
            raise exceptions.Conflict(
                f'blob id "{image.blob_id}" is used already'
            )
    except exceptions.NotFound:
        pass
    if not image.name:
        return
    try:
        found = catalog.find(image.name)
    except exceptions.NotFound:
        return
    if found.name == image.name and found.id != image.blob_id:
        raise exceptions.Conflict(
            f'name "{image.name}" is used already; choose another, or delete '
            f'that blob'
        )
