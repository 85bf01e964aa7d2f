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
"""Rows of the catalog: looking them up, and what is told about them.

All functions run inside a transaction of :mod:`lazyblob.catalog.engine`.
"""

import datetime
import hashlib
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from lazyblob import exceptions
from lazyblob.catalog import api
from lazyblob.catalog import models
from lazyblob.catalog import statements


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc).replace(
        microsecond=0, tzinfo=None
    )


def hashed(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest() if secret else ''


def count(result: Any) -> int:
    """Rows matched (not rows changed, on every database)."""
    return int(result.rowcount)


def no_blob(blob_id: str) -> exceptions.NotFound:
    return exceptions.NotFound(f'no blob "{blob_id}"')


def taken(found: models.Blob) -> exceptions.Conflict:
    if found.state == api.State.TOMBSTONE:
        return exceptions.Conflict(
            f'blob "{found.id}" was deleted; choose another id'
        )
    return exceptions.Conflict(f'blob id "{found.id}" is used already')


def live(
    session: orm.Session, blob_id: str, *, is_locking: bool = False
) -> models.Blob:
    """:param is_locking: the newest row, whatever the snapshot says"""
    look = statements.BLOB_LOCKED if is_locking else statements.BLOB
    found = session.scalar(look, {'blob_id': blob_id})
    if found is None or found.state == api.State.TOMBSTONE:
        raise no_blob(blob_id)
    return found


def existing(
    session: orm.Session, blob: models.Blob, number: int | None
) -> models.Version:
    wanted = blob.head if number is None else number
    found = session.get(models.Version, (blob.id, wanted))
    if found is None:
        raise exceptions.NotFound(
            f'no version {wanted} of blob "{blob.id}"'
            if wanted
            else f'blob "{blob.id}" has no version yet'
        )
    return found


def named(
    session: orm.Session, blob_id: str, number: int | None
) -> models.Version:
    """A version, or the head, by one statement: they agree with one another.

    :raises NotFound: no such blob or version
    """
    if number is None:
        found = session.scalar(statements.HEAD, {'blob_id': blob_id})
    else:
        named_by = {'blob_id': blob_id, 'number': number}
        found = session.scalar(statements.VERSION, named_by)
    return found or existing(session, live(session, blob_id), number)


def has_versions(session: orm.Session, blob_id: str) -> bool:
    return bool(
        session.scalar(
            sa.select(sa.exists().where(models.Version.blob_id == blob_id))
        )
    )


def commit(
    session: orm.Session,
    blob_id: str,
    commit_id: str,
    *,
    is_locking: bool = False,
) -> models.Version | None:
    look = sa.select(models.Version).where(
        models.Version.blob_id == blob_id,
        models.Version.commit_id == commit_id,
    )
    if is_locking:
        look = look.with_for_update()
    return session.scalar(look)


def check_secret(blob: models.Blob, secret: str) -> None:
    if blob.secret != hashed(secret):
        raise exceptions.Forbidden(
            f'blob "{blob.id}" is attached by somebody else; detach it first'
        )


def add_version(
    session: orm.Session, blob_id: str, number: int, **values: Any
) -> api.Version:
    values = {
        'blob_id': blob_id,
        'number': number,
        'created_at': now(),
        **values,
    }
    session.execute(statements.ADD_VERSION, values)
    return version(models.Version(**values))


def blob(row: models.Blob) -> api.Blob:
    return api.Blob(
        id=row.id,
        name=row.name or '',
        kind=api.Kind(row.kind),
        state=api.State(row.state),
        project_id=row.project_id,
        chunk_size_bytes=row.chunk_size_bytes,
        scope=row.scope,
        epoch=row.epoch,
        head=row.head,
        origin=row.origin,
        origin_version=row.origin_version,
        created_at=f'{row.created_at.isoformat()}Z',
    )


def version(row: models.Version) -> api.Version:
    return api.Version(
        blob_id=row.blob_id,
        number=row.number,
        root=row.root,
        size_bytes=row.size_bytes,
        project_id=row.project_id,
        commit_id=row.commit_id,
        created_at=f'{row.created_at.isoformat()}Z',
    )


def session(row: models.Session) -> api.Session:
    return api.Session(row.id, row.owner, f'{row.started_at.isoformat()}Z')
