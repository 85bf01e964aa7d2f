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
"""The statements of every open and every COMMIT, built once.

SQLAlchemy keeps the SQL of a statement that it has seen, but not the work of
building the statement and of finding out that it was seen: in an operation on
SQLite that is half of the time and more. What runs seldom is built where it
runs.

Changes go by the tables, not by the mapped classes: what a session might hold
of a row is not looked at, so nobody reads such a row before and after in one
transaction without ``populate_existing``.
"""

from typing import Any

import sqlalchemy as sa

from lazyblob.catalog import api
from lazyblob.catalog import models

_blobs: Any = models.Blob.__table__
_versions: Any = models.Version.__table__
_sessions: Any = models.Session.__table__

#: ``blob_id``; the row, whatever the session holds of it.
BLOB = (
    sa.select(models.Blob)
    .where(models.Blob.id == sa.bindparam('blob_id'))
    .execution_options(populate_existing=True)
)
BLOB_LOCKED = BLOB.with_for_update()

_VERSION = (
    sa.select(models.Version)
    .join(models.Blob)
    .where(
        models.Blob.id == sa.bindparam('blob_id'),
        models.Blob.state != api.State.TOMBSTONE.value,
    )
)
#: ``blob_id``: its newest version, by one statement.
HEAD = _VERSION.where(models.Version.number == models.Blob.head)
#: ``blob_id``, ``number``.
VERSION = _VERSION.where(models.Version.number == sa.bindparam('number'))
#: The columns of ``versions``.
ADD_VERSION = sa.insert(_versions)

#: ``blob_id``, ``at_epoch``, ``parent``, ``hashed_secret``, ``new_head``.
SWAP_HEAD = (
    sa.update(_blobs)
    .where(
        _blobs.c.id == sa.bindparam('blob_id'),
        _blobs.c.epoch == sa.bindparam('at_epoch'),
        _blobs.c.head == sa.bindparam('parent'),
        _blobs.c.secret == sa.bindparam('hashed_secret'),
        _blobs.c.state != api.State.TOMBSTONE.value,
    )
    .values(head=sa.bindparam('new_head'))
)

#: ``new_id``, ``new_owner``, ``now``.
BEGIN_SESSION = sa.insert(_sessions).values(
    id=sa.bindparam('new_id'),
    owner=sa.bindparam('new_owner'),
    started_at=sa.bindparam('now'),
    collection_epoch=sa.select(
        models.Repository.collection_epoch
    ).scalar_subquery(),
)
#: ``session_id``, ``now``; matches one that is alive.
END_SESSION = (
    sa.update(_sessions)
    .where(
        _sessions.c.id == sa.bindparam('session_id'),
        _sessions.c.ended_at.is_(None),
    )
    .values(ended_at=sa.bindparam('now'))
)
#: ``session_id``; one that is alive stays so until the transaction's end.
HOLD_SESSION = (
    sa.select(_sessions.c.id)
    .where(
        _sessions.c.id == sa.bindparam('session_id'),
        _sessions.c.ended_at.is_(None),
    )
    .with_for_update(read=True)
)

#: The digests of the first page.
BAD_DIGESTS = (
    sa.select(models.BadDigest.digest)
    .order_by(models.BadDigest.digest)
    .limit(api.BAD_DIGESTS_PAGE)
)
