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
"""Which failures of a database pass, and how long they are waited out.

A *conflict* undid the transaction: a deadlock, a lock that was waited for too
long, Galera's certification, MariaDB's "record has changed". A *lost*
connection leaves open whether the transaction was committed. Either way the
whole operation runs again; that a second run answers what the first achieved
is the operations' affair (:mod:`lazyblob.catalog.sql`).

What is lost is SQLAlchemy's own judgement (``connection_invalidated``); what
is a conflict is read from the servers' codes, which SQLAlchemy leaves to its
caller. oslo.db would do both, but its filters match texts (of psycopg2),
leave out PostgreSQL's serialization failures, wrap what they do not know with
a warning, and bring a run-time dependency on test libraries; its loop counts
tries, and a server's restart is a matter of seconds.
"""

import enum
import random
from collections.abc import Iterator

from sqlalchemy import exc as sa_exc

PATIENCE_SECONDS = 10.0
_PAUSE_SECONDS_MIN = 0.02
_PAUSE_SECONDS_MAX = 1.0

_MYSQL_CONFLICTS = {
    1020,  # record has changed since last read
    1205,  # lock wait timeout
    1213,  # deadlock; Galera's certification and brute force abort
}
_MYSQL_LOST = {
    1040,  # too many connections
    1047,  # Galera: this node is not prepared
    1053,  # the server is shutting down
    1927,  # connection was killed
    2002,  # cannot connect, by socket or
    2003,  # by network
    2006,  # gone away
    2013,  # lost during the query
}
_POSTGRESQL_CONFLICTS = {
    '40001',  # serialization failure
    '40P01',  # deadlock
    '55P03',  # lock timeout
}
# Connection failures, a server that starts or stops, too many connections.
_POSTGRESQL_LOST = ('08', '57P', '53300')
_MYSQL_NO_TABLE = 1146
_POSTGRESQL_NO_TABLE = '42P01'


class Failure(enum.Enum):
    """What became of a transaction."""

    CONFLICT = 'conflict'  # undone
    LOST = 'lost'  # nobody knows
    FINAL = 'final'  # not worth another try


def kind(exc: sa_exc.DBAPIError) -> Failure:
    """How a statement, a commit or a connect failed."""
    if _is_among(exc, _MYSQL_CONFLICTS, _POSTGRESQL_CONFLICTS):
        return Failure.CONFLICT
    if exc.connection_invalidated or _is_among(exc, _MYSQL_LOST, set()):
        return Failure.LOST
    state = _state(exc)
    if state is None:
        return Failure.LOST if _is_refused_connect(exc) else Failure.FINAL
    return (
        Failure.LOST if state.startswith(_POSTGRESQL_LOST) else Failure.FINAL
    )


def is_no_table(exc: sa_exc.DBAPIError) -> bool:
    return (
        'no such table' in str(exc.orig)
        or _code(exc) == _MYSQL_NO_TABLE
        or _state(exc) == _POSTGRESQL_NO_TABLE
    )


def pauses(patience_seconds: float) -> Iterator[float]:
    """Seconds to wait before each further try; grows, in all the patience.

    Jittered, so that rivals do not meet again.
    """
    longest = _PAUSE_SECONDS_MIN
    while patience_seconds > 0:
        pause = random.uniform(longest / 2, longest)  # noqa: S311
        yield min(pause, patience_seconds)
        patience_seconds -= pause
        longest = min(2 * longest, _PAUSE_SECONDS_MAX)


def _is_among(
    exc: sa_exc.DBAPIError, codes: set[int], states: set[str]
) -> bool:
    return _code(exc) in codes or _state(exc) in states


def _code(exc: sa_exc.DBAPIError) -> object:
    """PyMySQL's; of the other drivers it is some text."""
    arguments = getattr(exc.orig, 'args', ())
    return arguments[0] if arguments else None


def _state(exc: sa_exc.DBAPIError) -> str | None:
    """SQLSTATE, where the driver tells it: psycopg."""
    found = getattr(exc.orig, 'sqlstate', None)
    return found if isinstance(found, str) else None


def _is_refused_connect(exc: sa_exc.DBAPIError) -> bool:
    """psycopg's failure to connect has neither state nor statement."""
    return (
        type(exc.orig).__module__.startswith('psycopg')
        and isinstance(exc, sa_exc.OperationalError)
        and exc.statement is None
    )
