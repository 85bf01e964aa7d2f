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
"""Making and migrating the catalog's tables (alembic).

Apart from :mod:`.sql` so that services, which never migrate, do not load
alembic. Migrations only add within a release.
"""

import os
import pathlib
import secrets
import uuid

import alembic.command
import alembic.config
import sqlalchemy as sa
from sqlalchemy import exc as sa_exc
from sqlalchemy import orm

from lazyblob import exceptions
from lazyblob import urls
from lazyblob.catalog import engine
from lazyblob.catalog import models
from lazyblob.catalog import rows
from lazyblob.catalog import sql

FORMAT_VERSION = 1
_SCRIPTS = pathlib.Path(__file__).with_name('migrations')
_FILE_MODE = 0o660


def upgrade(url: str, revision: str = 'head') -> None:
    """Make the tables, or bring them to this release's; may be repeated."""
    path = engine.sqlite_path(url)
    try:
        if path is not None:
            _make_file(path)
        bind = engine.create(url)
        try:
            with bind.begin() as connection:
                alembic.command.upgrade(_config(connection), revision)
        finally:
            bind.dispose()
    except (sa_exc.SQLAlchemyError, OSError) as exc:
        reason = str(getattr(exc, 'orig', exc)).splitlines()[0]
        raise exceptions.CatalogUnavailable(
            f'could not make the tables of "{urls.masked(url)}": {reason}; '
            f'check the database, its URL and rights'
        ) from exc


def downgrade(url: str, revision: str) -> None:
    """For tests of the migrations."""
    bind = engine.create(url)
    with bind.begin() as connection:
        alembic.command.downgrade(_config(connection), revision)
    bind.dispose()


def initialise(
    url: str,
    *,
    chunk_store: str,
    dedupe_scope: str,
    is_moved: bool = False,
) -> None:
    """Tables and the repository's row; repeating is harmless.

    :param is_moved: the repository's chunk store is this one from now on
    :raises Conflict: another repository is there already
    """
    upgrade(url)

    def insert(session: orm.Session) -> None:
        found = session.get(models.Repository, sql.REPOSITORY_ID)
        if found is None:
            session.add(
                models.Repository(
                    id=sql.REPOSITORY_ID,
                    uuid=str(uuid.uuid4()),
                    format_version=FORMAT_VERSION,
                    dedupe_scope=dedupe_scope,
                    chunk_store=urls.masked(chunk_store),
                    secret=secrets.token_hex(32),
                    glance_store=None,
                    created_at=rows.now(),
                )
            )
            return
        if is_moved:
            found.chunk_store = urls.masked(chunk_store)
        if (found.chunk_store, found.dedupe_scope) != (
            urls.masked(chunk_store),
            dedupe_scope,
        ):
            raise exceptions.Conflict(
                f'catalog "{urls.masked(url)}" belongs to a repository with '
                f'chunk store "{found.chunk_store}" and dedupe scope '
                f'"{found.dedupe_scope}" already; if that store has moved, or '
                f'got a disk more, give --chunk-store-moved'
            )

    database = engine.Database(url)
    try:
        database.write(insert)
    except sa_exc.IntegrityError:
        database.write(insert)  # Somebody else was first.
    finally:
        database.close()


def _make_file(path: pathlib.Path) -> None:
    """Group-writable whatever the umask: its services share a group."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, _FILE_MODE)
    except FileExistsError:
        return
    os.fchmod(handle, _FILE_MODE)
    os.close(handle)


def _config(connection: sa.Connection) -> alembic.config.Config:
    config = alembic.config.Config()
    config.set_main_option('script_location', str(_SCRIPTS).replace('%', '%%'))
    config.attributes['connection'] = connection
    return config
