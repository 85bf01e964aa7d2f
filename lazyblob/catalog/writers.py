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
"""Who may write to a blob: taking it over, and the compare-and-swap.

An epoch names a writer; it grows at each hand-over, and a publish with an
old one is refused, so that a host that was thought dead cannot overwrite
what its successor wrote. The check stands in the WHERE of the UPDATE, which
is the transaction's first statement (contract 22).
"""

import sqlalchemy as sa
from sqlalchemy import orm

from lazyblob import exceptions
from lazyblob.catalog import api
from lazyblob.catalog import models
from lazyblob.catalog import rows
from lazyblob.catalog import statements


def claim(session: orm.Session, blob_id: str, secret: str) -> int:
    """The new epoch."""
    blob = models.Blob
    # The same attachment (its agent has restarted) goes on reading what it
    # read; a new one reads the head.
    keeps = sa.and_(blob.secret == rows.hashed(secret), blob.pinned > 0)
    matched = session.execute(
        sa.update(blob)
        .where(blob.id == blob_id, blob.state != api.State.TOMBSTONE.value)
        .values(
            pinned=sa.case((keeps, blob.pinned), else_=blob.head),
            epoch=blob.epoch + 1,
        )
    )
    if not rows.count(matched):
        raise rows.no_blob(blob_id)
    # Apart: in MariaDB's SET the CASE could see the new secret.
    session.execute(
        sa.update(blob)
        .where(blob.id == blob_id)
        .values(secret=rows.hashed(secret))
    )
    return rows.live(session, blob_id).epoch


def swap_head(
    session: orm.Session,
    blob_id: str,
    epoch: int,
    parent: int,
    secret: str,
) -> models.Blob | None:
    """Move the head on from its parent; None: something stands against it."""
    matched = session.execute(
        statements.SWAP_HEAD,
        {
            'blob_id': blob_id,
            'at_epoch': epoch,
            'parent': parent,
            'hashed_secret': rows.hashed(secret),
            'new_head': parent + 1,
        },
    )
    if not rows.count(matched):
        return None
    return rows.live(session, blob_id)


def hold_session(session: orm.Session, blob_id: str, session_id: str) -> None:
    """The writer's session is alive, and stays so until the commit.

    Locked, not only looked at: who ends it in this moment waits, so that the
    collector, which acts once it has ended, sees what was published.

    :raises Conflict: it has ended
    """
    held = {'session_id': session_id}
    if session.scalar(statements.HOLD_SESSION, held) is None:
        raise _has_ended(blob_id)


def use_up_session(
    session: orm.Session, blob_id: str, session_id: str
) -> None:
    """The writer's session is alive until the commit, and ends with it.

    The collector sees what was published and that it has ended by one commit.
    On Galera, where a row's lock is known on one node only, a change of it on
    two is a conflict, and one of both runs again.

    :raises Conflict: it has ended before
    """
    if not end_session(session, session_id):
        raise _has_ended(blob_id)


def end_session(session: orm.Session, session_id: str) -> bool:
    """Whether it was alive."""
    ended = {'session_id': session_id, 'now': rows.now()}
    return bool(rows.count(session.execute(statements.END_SESSION, ended)))


def _has_ended(blob_id: str) -> exceptions.Conflict:
    return exceptions.Conflict(
        f'the writer\'s session for blob "{blob_id}" has ended; commit again'
    )


def drop(session: orm.Session, blob: models.Blob, number: int) -> None:
    """Drop a version, unless the attached mirror reads it (contract 24)."""
    session.execute(
        sa.delete(models.Version).where(
            models.Version.blob_id == blob.id,
            models.Version.number == number,
            models.Version.number != blob.pinned,
        )
    )


def landed_before(
    session: orm.Session,
    blob_id: str,
    commit_id: str,
    epoch: int,
    parent: int,
    secret: str,
) -> api.Version:
    """What the first try of this commit achieved, or why this one cannot.

    Read with locks: what the UPDATE did not match must not change before it
    is explained.
    """
    blob = rows.live(session, blob_id, is_locking=True)
    found = rows.commit(session, blob_id, commit_id, is_locking=True)
    if found is not None:
        return rows.version(found)
    if blob.epoch != epoch:
        raise exceptions.StaleWriter(
            f'blob "{blob_id}" has a newer writer (epoch {blob.epoch}, not '
            f'{epoch}); attach it again'
        )
    if blob.head != parent:
        raise exceptions.StaleWriter(
            f'blob "{blob_id}" has moved on to version {blob.head} from '
            f'{parent}; attach it again'
        )
    rows.check_secret(blob, secret)
    # What stood against it is over: a claim that was repeated, say.
    raise exceptions.StaleWriter(
        f'blob "{blob_id}" changed hands meanwhile; attach it again'
    )
