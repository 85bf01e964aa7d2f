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
"""Versions that come from another repository (contract 45).

All functions run inside a transaction of :mod:`lazyblob.catalog.engine`. What
was received before is known by blob id, number and commit id; a blob that is
the same one by its time of creation too, since ids may be used again.
"""

import datetime

import sqlalchemy as sa
from sqlalchemy import orm

from lazyblob import exceptions
from lazyblob.catalog import api
from lazyblob.catalog import making
from lazyblob.catalog import models
from lazyblob.catalog import rows
from lazyblob.catalog import writers

_REMEDY = 'copy it under another name'


def used_name(blob: api.Blob) -> exceptions.Conflict:
    return exceptions.Conflict(
        f'the name "{blob.name}" of blob "{blob.id}" is used there already; '
        f'{_REMEDY}'
    )


def look(
    session: orm.Session,
    blob: api.Blob,
    version: api.Version,
    *,
    is_locking: bool = False,
) -> api.Version | None:
    """What was received before; None: it can be.

    :raises Conflict: something stands against it
    """
    found = session.get(
        models.Blob, blob.id, with_for_update=is_locking or None
    )
    if found is None:
        owner = blob.name and session.scalar(
            sa.select(models.Blob.id).where(models.Blob.name == blob.name)
        )
        # The blob itself may have come since the look before: no conflict;
        # its row is met when this one is written.
        if owner and owner != blob.id:
            raise used_name(blob)
        return None
    what = f'version {version.number} of blob "{blob.id}"'
    if found.state == api.State.TOMBSTONE:
        raise exceptions.Conflict(
            f'blob "{blob.id}" was deleted there; {_REMEDY}'
        )
    if (
        found.created_at != _time(blob.created_at)
        or found.project_id != blob.project_id
        or found.chunk_size_bytes != blob.chunk_size_bytes
    ):
        raise exceptions.Conflict(
            f'another blob has the id "{blob.id}" there; {_REMEDY}'
        )
    there = session.get(models.Version, (blob.id, version.number))
    if there is None:
        there = rows.commit(session, blob.id, version.commit_id)
    if there is not None:
        if (there.number, there.commit_id, there.size_bytes) != (
            version.number,
            version.commit_id,
            version.size_bytes,
        ):
            raise exceptions.Conflict(
                f'{what} is another one there than here; {_REMEDY}'
            )
        return rows.version(there)
    if version.number > found.head and (found.epoch > 1 or found.secret):
        raise exceptions.Conflict(
            f'{what} is newer than what is there, and the blob was attached '
            f'there and may be written to; {_REMEDY}'
        )
    return None


def take(
    session: orm.Session,
    blob: api.Blob,
    version: api.Version,
    scope: str,
    session_id: str,
) -> api.Version:
    """Make the version's row, and the blob's if it is not there.

    :param scope: the dedupe scope that the blob's project has here
    """
    there = look(session, blob, version, is_locking=True)
    if there is not None:
        return there
    writers.hold_session(session, blob.id, session_id)
    found = session.get(models.Blob, blob.id)
    if found is None:
        new = making.NewBlob(
            blob.id, blob.kind, blob.project_id, scope, blob.name
        )
        values = new.values(
            blob.chunk_size_bytes,
            state=blob.state.value,
            head=version.number,
            origin=blob.origin,
            origin_version=blob.origin_version,
            created_at=_time(blob.created_at),
        )
        session.execute(sa.insert(models.Blob).values(values))
    else:
        found.head = max(found.head, version.number)
    return rows.add_version(
        session,
        blob.id,
        version.number,
        root=version.root,
        size_bytes=version.size_bytes,
        project_id=blob.project_id,
        commit_id=version.commit_id,
        created_at=_time(version.created_at),
    )


def _time(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text.removesuffix('Z'))
