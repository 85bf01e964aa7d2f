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
"""A catalog goes to another database, whatever kind either is.

Everything goes, row by row: the repository's identity, so that locations that
Glance has stay valid, and what is known of attached disks and their writers.

Order: the new database gets its tables, then all rows in one transaction, so
that a crash leaves it empty or whole. Nobody may write meanwhile: SQLite is
locked; of a server it is compared, before and after, how much there is, and
a difference undoes the whole.

Threads: one.
"""

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc as sa_exc

from lazyblob import exceptions
from lazyblob import urls
from lazyblob.catalog import engine
from lazyblob.catalog import models
from lazyblob.catalog import schema
from lazyblob.catalog import sql

_BATCH = 1000


def move(
    source_url: str,
    target_url: str,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Bring all that one catalog holds into another one, which is empty.

    The old one stays as it is, and is not to be used any more.

    :param progress: called with the rows done so far
    :raises Conflict: there is a repository already, or somebody wrote
    """
    if source_url == target_url:
        raise exceptions.Conflict(
            f'catalog "{urls.masked(source_url)}" is where it is already'
        )
    catalog = sql.SqlCatalog(source_url)
    try:
        catalog.repository()  # Is it there, and of this release?
    finally:
        catalog.close()
    schema.upgrade(target_url)
    source, target = engine.create(source_url), engine.create(target_url)
    try:
        with source.begin() as reading, target.begin() as writing:
            _move(reading, writing, progress)
    except sa_exc.SQLAlchemyError as exc:
        reason = str(getattr(exc, 'orig', exc)).splitlines()[0]
        raise exceptions.CatalogUnavailable(
            f'catalog "{urls.masked(source_url)}" was not moved to '
            f'"{urls.masked(target_url)}": {reason}; nothing was changed'
        ) from exc
    finally:
        source.dispose()
        target.dispose()


def _move(
    reading: sa.Connection,
    writing: sa.Connection,
    progress: Callable[[int], None] | None,
) -> None:
    if writing.scalar(sa.select(sa.func.count(models.Repository.id))):
        raise exceptions.Conflict(
            'the new catalog holds a repository already; give an empty '
            'database'
        )
    before, done = _measure(reading), 0
    for table in models.Base.metadata.sorted_tables:
        rows = reading.execution_options(yield_per=_BATCH).execute(
            sa.select(table)
        )
        for batch in rows.mappings().partitions():
            writing.execute(table.insert(), [dict(row) for row in batch])
            done += len(batch)
            if progress is not None:
                progress(done)
    if not before == _measure(reading) == _measure(writing):
        raise exceptions.Conflict(
            'somebody wrote to the old catalog meanwhile, so nothing was '
            'changed; stop every conductor, and try again'
        )


def _measure(connection: sa.Connection) -> list[Any]:
    """How much there is, and how far blobs have come."""
    found: list[Any] = [
        connection.scalar(sa.select(sa.func.count()).select_from(table))
        for table in models.Base.metadata.sorted_tables
    ]
    blob = models.Blob
    sums = connection.execute(
        sa.select(sa.func.sum(blob.head), sa.func.sum(blob.epoch))
    ).one()
    return [*found, *(int(each or 0) for each in sums)]
