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
"""Connections to the database: one transaction an operation.

SQLite: ``BEGIN IMMEDIATE`` for whatever writes, because its driver opens no
transaction at a SELECT and a lock that is upgraded later can fail halfway;
``synchronous=FULL``, because a published version must survive loss of power.
It runs in WAL mode: readers (an agent's lookups, ``lazyimage ls``) never wait
for a writer, and a commit is one fsync instead of three. Its price is that
the file cannot live on NFS and that a copy of a running catalog is made with
``sqlite3 ... .backup``.

MariaDB: the default isolation. A compare-and-swap is the first statement of
its transaction, so it sees the newest row whatever the isolation is.

Passing conflicts between transactions (deadlock, lock wait, Galera's
certification, MariaDB's "record has changed") are repeated here; everything
else that the network or the server did is :class:`CatalogUnavailable`.

Threads: one engine serves them all. A fork gets connections of its own.
"""

import os
import pathlib
import random
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy import exc as sa_exc
from sqlalchemy import orm

from lazyblob import exceptions
from lazyblob import urls

T = TypeVar('T')

_BUSY_TIMEOUT_SECONDS = 30
_TRIES_MAX = 8
_PAUSE_SECONDS_MAX = 0.5
# Deadlock, lock wait timeout, record has changed since last read.
_MYSQL_CONFLICTS = (1213, 1205, 1020)
_MYSQL_NO_TABLE = 1146
_POSTGRESQL_CONFLICTS = ('40001', '40P01')


def sqlite_path(url: str) -> pathlib.Path | None:
    """The file of a SQLite catalog; None for other databases."""
    parsed = sa.make_url(url)
    if parsed.get_backend_name() != 'sqlite':
        return None
    if not parsed.database or not parsed.database.startswith('/'):
        raise exceptions.InvalidConfiguration(
            f'catalog "{url}" is no "sqlite:////absolute/path"'
        )
    return pathlib.Path(parsed.database)


def create(url: str) -> sa.Engine:
    """:raises InvalidConfiguration: no such dialect, or not a URL"""
    try:
        path = sqlite_path(url)
        if path is None:
            # MariaDB closes idle connections; asking first is one round trip.
            return sa.create_engine(url, pool_pre_ping=True, pool_recycle=1800)
        engine = sa.create_engine(
            url,
            connect_args={
                'timeout': _BUSY_TIMEOUT_SECONDS,
                'check_same_thread': False,
            },
        )
    except (sa_exc.ArgumentError, ImportError) as exc:
        raise exceptions.InvalidConfiguration(
            f'catalog "{urls.masked(url)}": {exc}'
        ) from exc
    event.listen(engine, 'connect', _prepare_sqlite)
    event.listen(engine, 'begin', _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None
    for pragma in (
        'journal_mode=WAL',
        'synchronous=FULL',
        'foreign_keys=ON',
    ):
        connection.execute(f'PRAGMA {pragma}')


def _begin_sqlite(connection: sa.Connection) -> None:
    is_reading = connection.get_execution_options().get('is_reading')
    connection.exec_driver_sql('BEGIN' if is_reading else 'BEGIN IMMEDIATE')


class Database:
    """Runs operations, each in one transaction."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._masked = urls.masked(url)
        self._lock = threading.Lock()
        self._engine: sa.Engine | None = None
        self._process_id = 0
        sa.make_url(url)

    @property
    def engine(self) -> sa.Engine:
        with self._lock:
            if self._engine is not None and self._process_id != os.getpid():
                # The parent's connections are the parent's.
                self._engine.dispose(close=False)
                self._engine = None
            if self._engine is None:
                path = sqlite_path(self.url)
                if path is not None and not path.exists():
                    raise exceptions.NotFound(
                        f'no repository at "{path}"; run "lazyimage init", '
                        f'or correct the repository\'s URL'
                    )
                self._engine = create(self.url)
                self._process_id = os.getpid()
            return self._engine

    def read(self, operation: Callable[[orm.Session], T]) -> T:
        """Run an operation that changes nothing."""
        return self._run(operation, is_reading=True)

    def write(self, operation: Callable[[orm.Session], T]) -> T:
        """Run an operation; it may run again from its start."""
        return self._run(operation, is_reading=False)

    def close(self) -> None:
        with self._lock:
            if self._engine is not None:
                self._engine.dispose()
                self._engine = None

    def _run(
        self, operation: Callable[[orm.Session], T], *, is_reading: bool
    ) -> T:
        for left in reversed(range(_TRIES_MAX)):
            engine = self.engine.execution_options(is_reading=is_reading)
            try:
                with orm.Session(engine, expire_on_commit=False) as session:
                    with session.begin():
                        return operation(session)
            except sa_exc.IntegrityError:
                raise
            except sa_exc.DBAPIError as exc:
                if not (left and _is_conflict(exc)):
                    raise self._failed(exc) from exc
                # Jittered, so that rivals do not meet again.
                time.sleep(random.uniform(0, _PAUSE_SECONDS_MAX))  # noqa: S311
            except sa_exc.SQLAlchemyError as exc:
                raise exceptions.CatalogUnavailable(
                    f'catalog "{self._masked}" failed: {exc}'
                ) from exc
        raise AssertionError('unreachable')

    def _failed(self, exc: sa_exc.DBAPIError) -> exceptions.LazyBlobError:
        reason = str(exc.orig).splitlines()[0] if str(exc.orig) else repr(exc)
        if 'no such table' in reason or _code(exc) == _MYSQL_NO_TABLE:
            return exceptions.NotFound(
                f'no repository in "{self._masked}"; run "lazyimage init", '
                f'or correct the catalog\'s URL'
            )
        return exceptions.CatalogUnavailable(
            f'catalog "{self._masked}" did not answer: {reason}; check the '
            f'database, its URL and rights, then try again'
        )


def _code(exc: sa_exc.DBAPIError) -> object:
    arguments = getattr(exc.orig, 'args', ())
    return arguments[0] if arguments else None


def _is_conflict(exc: sa_exc.DBAPIError) -> bool:
    return (
        _code(exc) in _MYSQL_CONFLICTS
        or getattr(exc.orig, 'sqlstate', None) in _POSTGRESQL_CONFLICTS
    )
