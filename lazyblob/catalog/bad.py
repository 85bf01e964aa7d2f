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
"""The list of bad digests: what somebody found damaged or missing.

A hint for writers (contracts, "Formats"): each row stands alone, and who
comes first is its reporter. Digests are inserted in one order, so that two
reporters do not lock one another out.

All functions run inside a transaction of :mod:`lazyblob.catalog.engine`.
"""

from collections.abc import Iterator, Sequence

import sqlalchemy as sa
from sqlalchemy import orm

from lazyblob.catalog import api
from lazyblob.catalog import models
from lazyblob.catalog import rows
from lazyblob.catalog import statements

_AT_ONCE = 500


def report(
    session: orm.Session, digests: Sequence[str], reporter: str
) -> None:
    """:raises IntegrityError: another reporter was first; do it again"""
    for some in _batches(sorted(set(digests))):
        known = set(
            session.scalars(
                sa.select(models.BadDigest.digest).where(
                    models.BadDigest.digest.in_(some)
                )
            )
        )
        new = [
            {
                'digest': digest,
                'reporter': reporter[: models.ID_LENGTH],
                'reported_at': rows.now(),
            }
            for digest in some
            if digest not in known
        ]
        if new:
            session.execute(sa.insert(models.BadDigest), new)


def page(
    session: orm.Session, among: Sequence[str] | None, after: str, limit: int
) -> list[api.BadDigest]:
    """Ascending, those after a digest."""
    bad = models.BadDigest
    look = sa.select(bad).where(bad.digest > after)
    if among is not None:
        look = look.where(bad.digest.in_(among))
    found = session.scalars(look.order_by(bad.digest).limit(limit))
    return [
        api.BadDigest(
            row.digest, row.reporter, f'{row.reported_at.isoformat()}Z'
        )
        for row in found
    ]


def first(session: orm.Session) -> list[str]:
    """The digests of the first page."""
    return list(session.scalars(statements.BAD_DIGESTS))


def forget(session: orm.Session, digests: Sequence[str]) -> None:
    """Those that are listed."""
    for some in _batches(sorted(set(digests))):
        session.execute(
            sa.delete(models.BadDigest).where(
                models.BadDigest.digest.in_(some)
            )
        )


def _batches(digests: Sequence[str]) -> Iterator[Sequence[str]]:
    for at in range(0, len(digests), _AT_ONCE):
        yield digests[at : at + _AT_ONCE]
