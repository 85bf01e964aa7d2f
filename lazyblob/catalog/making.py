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
"""How blobs come to be: made, adopted, cloned, or by a snapshot.

All functions run inside a transaction of :mod:`lazyblob.catalog.engine`. A
used id or name shows as the database's ``IntegrityError`` there; what it
means is found out by the caller, in a transaction of its own.
"""

import dataclasses
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from lazyblob import exceptions
from lazyblob.catalog import api
from lazyblob.catalog import locations
from lazyblob.catalog import models
from lazyblob.catalog import rows


@dataclasses.dataclass(frozen=True)
class NewBlob:
    """What a blob is to be.

    :param scope: the dedupe scope that its project has here
    :raises InvalidConfiguration: its id or name cannot be one
    """

    id: str
    kind: api.Kind
    project_id: str
    scope: str
    name: str = ''

    def __post_init__(self) -> None:
        if not locations.BLOB_ID.fullmatch(self.id):
            raise exceptions.InvalidConfiguration(
                f'blob id "{self.id}" is not 1 to 255 letters, digits, dots, '
                f'dashes and underscores'
            )
        if len(self.name) > models.ID_LENGTH:
            raise exceptions.InvalidConfiguration(
                f'name "{self.name[:40]}..." is longer than '
                f'{models.ID_LENGTH} characters'
            )

    def values(self, chunk_size_bytes: int, **others: Any) -> dict[str, Any]:
        """The columns of its row."""
        return {
            'id': self.id,
            'name': self.name or None,
            'kind': self.kind.value,
            'state': api.State.ACTIVE.value,
            'project_id': self.project_id,
            'chunk_size_bytes': chunk_size_bytes,
            'scope': self.scope,
            'epoch': 1,
            'head': 0,
            'pinned': 0,
            'secret': '',
            'origin': '',
            'origin_version': 0,
            'created_at': rows.now(),
            **others,
        }


def insert(
    session: orm.Session, new: NewBlob, chunk_size_bytes: int
) -> api.Blob:
    session.execute(
        sa.insert(models.Blob).values(new.values(chunk_size_bytes))
    )
    return rows.blob(session.get_one(models.Blob, new.id))


def adopt(
    session: orm.Session, new: NewBlob, chunk_size_bytes: int
) -> api.Blob:
    """A blob that is there: asked for again, left without a version by an
    upload that died, or an image that was deleted.
    """
    values = new.values(chunk_size_bytes)
    found = session.get(models.Blob, new.id, with_for_update=True)
    if found is None:
        raise exceptions.Conflict(f'name "{new.name}" is used already')
    if found.state == api.State.TOMBSTONE and new.kind is api.Kind.IMAGE:
        # Versions go on counting: an old location names no new bytes.
        kept = ('id', 'epoch', 'head')
        for key, value in values.items():
            if key not in kept:
                setattr(found, key, value)
        found.deleted_at = None
        session.flush()
        return rows.blob(found)
    same = ('kind', 'project_id', 'chunk_size_bytes', 'name', 'state')
    if (
        rows.has_versions(session, new.id)
        or found.secret
        or any(getattr(found, key) != values[key] for key in same)
    ):
        raise rows.taken(found)
    return rows.blob(found)


def clone(
    session: orm.Session, new: NewBlob, source: str, number: int | None
) -> api.Version:
    """The root is copied: deleting the source never touches the clone."""
    # Locked, so that no delete of the source comes in between; shared, so
    # that the clones of one image do not queue for one another's fsync.
    origin = session.get(models.Blob, source, with_for_update={'read': True})
    if origin is None or origin.state == api.State.TOMBSTONE:
        raise rows.no_blob(source)
    version = rows.existing(session, origin, number)
    _check_scope(new, origin)
    return _insert_with_version(
        session,
        new.values(
            origin.chunk_size_bytes,
            origin=source,
            origin_version=version.number,
        ),
        version.root,
        version.size_bytes,
        f'clone:{version.number}',
    )


def cloned(
    session: orm.Session, new: NewBlob, source: str, number: int | None
) -> api.Version | None:
    """What an earlier call made of the same clone.

    :raises Conflict: something else has its id
    """
    found = session.get(models.Blob, new.id)
    if found is None:
        return None
    if (
        found.origin != source
        or (number is not None and found.origin_version != number)
        or found.kind != new.kind.value
        or found.project_id != new.project_id
        or found.state == api.State.TOMBSTONE
    ):
        raise rows.taken(found)
    first = session.scalar(
        sa.select(models.Version)
        .where(models.Version.blob_id == new.id)
        .order_by(
            (models.Version.number != 1).cast(sa.Integer),
            models.Version.number.desc(),
        )
        .limit(1)
    )
    return rows.version(first or rows.existing(session, found, None))


def snapshot(
    session: orm.Session,
    new: NewBlob,
    source: models.Blob,
    root: str,
    size_bytes: int,
) -> None:
    """The image blob that a publish makes beside its version."""
    _check_scope(new, source)
    _insert_with_version(
        session,
        new.values(
            source.chunk_size_bytes,
            state=api.State.PROVISIONAL.value,
            origin=source.id,
            origin_version=source.head,
        ),
        root,
        size_bytes,
        f'snapshot:{source.head}',
    )


def _check_scope(new: NewBlob, origin: models.Blob) -> None:
    if new.scope != origin.scope:
        raise exceptions.Forbidden(
            f'blob "{new.id}" would belong to another project than '
            f'"{origin.id}", and this repository shares nothing between '
            f'projects'
        )


def _insert_with_version(
    session: orm.Session,
    values: dict[str, Any],
    root: str,
    size_bytes: int,
    commit_id: str,
) -> api.Version:
    session.execute(sa.insert(models.Blob).values({**values, 'head': 1}))
    return rows.add_version(
        session,
        values['id'],
        1,
        root=root,
        size_bytes=size_bytes,
        project_id=values['project_id'],
        commit_id=commit_id,
    )
