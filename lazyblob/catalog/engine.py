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
``synchronous=FULL``, because a published version must survive loss of power;
the begin and the end of a writer's session need not (:meth:`Database.write`).
It runs in WAL mode: readers (an agent's lookups, ``lazyimage ls``) never wait
for a writer, and a commit is one fsync instead of three. Its price is that
the file cannot live on NFS and that a copy of a running catalog is made with
``sqlite3 ... .backup``. Transactions are serial. It reads through a mapping
(a row that nobody asked for lately is a third faster); writes do not go that
way, and a disk that cannot be read ends the process instead of the operation.

MariaDB and PostgreSQL: READ COMMITTED, said to the server and not left to its
default. A statement sees what is committed when it begins, and a locking one
the newest row that it had to wait for. So an operation decides only by what
it has locked (a compare-and-swap is an UPDATE and its transaction's first
statement), and rows that have to agree are read by one statement. What
REPEATABLE READ adds would harm: MariaDB's gap locks make strangers deadlock,
its snapshot shows a publish that waited the past (or, with
``innodb_snapshot_isolation``, which releases before 11.6 leave off, fails
it), and PostgreSQL fails it always.

On Galera reads wait for what other nodes committed (``wsrep_sync_wait``).
PostgreSQL's ``synchronous_commit`` is switched on for our sessions; that
MariaDB's ``innodb_flush_log_at_trx_commit`` is 1 is the operator's, and a
warning if it is not.

Passing failures are repeated here, :mod:`lazyblob.catalog.passing` says
which; everything else that the network or the server did is
:class:`CatalogUnavailable`.

Threads: one engine serves them all. A fork gets connections of its own.
"""

import functools
import logging
import os
import pathlib
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
from lazyblob.catalog import passing

LOG = logging.getLogger(__name__)
T = TypeVar('T')

_BUSY_TIMEOUT_SECONDS = 30
_LOCK_SECONDS_MAX = 20
_CONNECT_SECONDS_MAX = 10
# Of a server that is silent, longer than any lock is waited for.
_ANSWER_SECONDS_MAX = 60
_ISOLATION = 'READ COMMITTED'
# Of a larger catalog the rest is read without; 100,000 versions are 70 MB.
_MAPPED_BYTES_MAX = 1 << 28


def sqlite_path(url: str) -> pathlib.Path | None:
    """The file of a SQLite catalog; None for other databases."""
    parsed = _parsed(url)
    if parsed.get_backend_name() != 'sqlite':
        return None
    if not parsed.database or not parsed.database.startswith('/'):
        raise exceptions.InvalidConfiguration(
            f'catalog "{url}" is no "sqlite:////absolute/path"'
        )
    return pathlib.Path(parsed.database)


def _parsed(url: str) -> sa.URL:
    """``postgresql://`` is our driver, whatever SQLAlchemy's default is."""
    parsed = sa.make_url(url)
    if parsed.drivername == 'postgresql':
        return parsed.set(drivername='postgresql+psycopg')
    return parsed


def create(url: str) -> sa.Engine:
    """:raises InvalidConfiguration: no such dialect, or not a URL"""
    try:
        path = sqlite_path(url)
        if path is None:
            return _create_for_server(url)
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


def _create_for_server(url: str) -> sa.Engine:
    backend = _parsed(url).get_backend_name()
    arguments: dict[str, Any] = {'connect_timeout': _CONNECT_SECONDS_MAX}
    if backend == 'postgresql':
        arguments['tcp_user_timeout'] = _ANSWER_SECONDS_MAX * 1000
        # Prepared statements are a connection's; poolers mix those up.
        arguments['prepare_threshold'] = None
    else:
        arguments['read_timeout'] = _ANSWER_SECONDS_MAX
        arguments['write_timeout'] = _ANSWER_SECONDS_MAX
    engine = sa.create_engine(
        _parsed(url),
        isolation_level=_ISOLATION,
        # Servers close idle connections; asking first is one round trip.
        pool_pre_ping=True,
        pool_recycle=1800,
        connect_args=arguments,
    )
    prepare = _prepare_mysql
    if backend == 'postgresql':
        prepare = _prepare_postgresql
    event.listen(engine, 'connect', prepare)
    return engine


def _prepare_mysql(connection: Any, _record: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            f'SET SESSION innodb_lock_wait_timeout={_LOCK_SECONDS_MAX}'
        )
        if 'mariadb' in connection.get_server_info().lower():
            cursor.execute('SET SESSION wsrep_sync_wait=7')
        cursor.execute('SELECT @@innodb_flush_log_at_trx_commit')
        (flushes,) = cursor.fetchone()
    if int(flushes) != 1:
        _warn_once(
            'The catalog\'s server has innodb_flush_log_at_trx_commit=%s: '
            'versions that were published may be gone after a loss of '
            'power; set it to 1',
            flushes,
        )


@functools.cache
def _warn_once(message: str, *arguments: Any) -> None:
    LOG.warning(message, *arguments)


def _prepare_postgresql(connection: Any, _record: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"SET lock_timeout='{_LOCK_SECONDS_MAX}s'")
        cursor.execute('SET synchronous_commit=on')
    connection.commit()


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None
    for pragma in (
        'journal_mode=WAL',
        'synchronous=FULL',
        'foreign_keys=ON',
        f'mmap_size={_MAPPED_BYTES_MAX}',
    ):
        connection.execute(f'PRAGMA {pragma}')


def _begin_sqlite(connection: sa.Connection) -> None:
    options = connection.get_execution_options()
    if options.get('is_reading'):
        connection.exec_driver_sql('BEGIN')
        return
    # Before BEGIN: within a transaction it has no effect.
    level = 'FULL' if options.get('is_synced', True) else 'NORMAL'
    connection.exec_driver_sql(f'PRAGMA synchronous={level}')
    connection.exec_driver_sql('BEGIN IMMEDIATE')


class Database:
    """Runs operations, each in one transaction."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._masked = urls.masked(url)
        self._lock = threading.Lock()
        self._engine: sa.Engine | None = None
        self._views: dict[tuple[bool, bool], sa.Engine] = {}
        self._process_id = 0
        _parsed(url)

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
                self._views = {}
            return self._engine

    def _view(self, *, is_reading: bool, is_synced: bool) -> sa.Engine:
        """The engine, with options that begin a transaction right."""
        engine = self.engine
        key = (is_reading, is_synced)
        with self._lock:
            if key not in self._views:
                self._views[key] = engine.execution_options(
                    is_reading=is_reading, is_synced=is_synced
                )
            return self._views[key]

    def read(self, operation: Callable[[orm.Session], T]) -> T:
        """Run an operation that changes nothing."""
        return self._run(operation, is_reading=True, is_synced=False)

    def write(
        self,
        operation: Callable[[orm.Session], T],
        *,
        is_synced: bool = True,
    ) -> T:
        """Run an operation; it may run again from its start.

        :param is_synced: it survives loss of power; if not, SQLite writes it
            with the next one that does, in order. Servers sync everything
        """
        return self._run(operation, is_reading=False, is_synced=is_synced)

    def close(self) -> None:
        with self._lock:
            if self._engine is not None:
                self._engine.dispose()
                self._engine = None

    def _run(
        self,
        operation: Callable[[orm.Session], T],
        *,
        is_reading: bool,
        is_synced: bool,
    ) -> T:
        pauses = passing.pauses(passing.PATIENCE_SECONDS)
        while True:
            engine = self._view(is_reading=is_reading, is_synced=is_synced)
            try:
                with orm.Session(engine, expire_on_commit=False) as session:
                    with session.begin():
                        return operation(session)
            except sa_exc.IntegrityError:
                raise
            except sa_exc.DBAPIError as exc:
                pause_seconds = None
                if passing.kind(exc) is not passing.Failure.FINAL:
                    pause_seconds = next(pauses, None)
                if pause_seconds is None:
                    raise self._failed(exc) from exc
                LOG.debug('Trying again in %.2f s: %s', pause_seconds, exc)
                time.sleep(pause_seconds)
            except sa_exc.SQLAlchemyError as exc:
                raise exceptions.CatalogUnavailable(
                    f'catalog "{self._masked}" failed: {exc}'
                ) from exc

    def _failed(self, exc: sa_exc.DBAPIError) -> exceptions.LazyBlobError:
        reason = str(exc.orig).splitlines()[0] if str(exc.orig) else repr(exc)
        if passing.is_no_table(exc):
            return exceptions.NotFound(
                f'no repository in "{self._masked}"; run "lazyimage init", '
                f'or correct the catalog\'s URL'
            )
        return exceptions.CatalogUnavailable(
            f'catalog "{self._masked}" did not answer: {reason}; check the '
            f'database, its URL and rights, then try again'
        )
