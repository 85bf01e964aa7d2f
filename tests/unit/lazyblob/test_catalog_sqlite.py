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
"""The catalog in SQLite."""

import os
import shutil
import sqlite3
import stat

import alembic.autogenerate
import alembic.migration
import catalog_contract
import database_contract
import pytest
import sqlalchemy as sa

from lazyblob import exceptions
from lazyblob.catalog import engine
from lazyblob.catalog import models
from lazyblob.catalog import moving
from lazyblob.catalog import passing
from lazyblob.catalog import schema
from lazyblob.catalog import sql


@pytest.fixture(scope='module')
def template(tmp_path_factory):
    """Made once: migrating takes longer than most tests."""
    path = tmp_path_factory.mktemp('template') / 'catalog.sqlite'
    schema.initialise(
        f'sqlite:///{path}',
        chunk_store='file:///chunks',
        dedupe_scope='repository',
    )
    return path


@pytest.fixture
def url(template, tmp_path):
    shutil.copy(template, tmp_path)
    return f'sqlite:///{tmp_path}/{template.name}'


@pytest.fixture
def open_catalog(url):
    return lambda: sql.SqlCatalog(url)


class TestSqlite(catalog_contract.CatalogContract):
    """The contract."""


class TestDatabase(database_contract.DatabaseContract):
    @pytest.fixture
    def empty_database(self, tmp_path):
        return f'sqlite:///{tmp_path}/catalog.sqlite'

    @pytest.fixture
    def plan(self):
        return database_contract.plan_of_sqlite


def test_a_catalog_that_is_not_there_is_not_made_by_looking(tmp_path):
    path = tmp_path / 'catalog.sqlite'
    with pytest.raises(exceptions.NotFound, match='lazyimage init'):
        sql.SqlCatalog(f'sqlite:///{path}').repository()
    assert not path.exists()


def test_a_database_without_tables_is_no_repository(tmp_path):
    path = tmp_path / 'catalog.sqlite'
    path.touch()
    catalog = sql.SqlCatalog(f'sqlite:///{path}')
    for look in (catalog.repository, catalog.list_blobs):
        with pytest.raises(exceptions.NotFound, match='lazyimage init'):
            look()


def test_a_schema_of_another_release_is_refused(url, tmp_path):
    with sqlite3.connect(tmp_path / 'catalog.sqlite') as connection:
        connection.execute('UPDATE alembic_version SET version_num = "9999"')
    with pytest.raises(exceptions.InvalidConfiguration, match='9999'):
        sql.SqlCatalog(url).repository()


def test_initialising_twice_changes_nothing(url):
    before = sql.SqlCatalog(url).repository()
    schema.initialise(
        url, chunk_store='file:///chunks', dedupe_scope='repository'
    )
    assert sql.SqlCatalog(url).repository() == before
    with pytest.raises(exceptions.Conflict, match='file:///chunks'):
        schema.initialise(
            url, chunk_store='file:///other', dedupe_scope='repository'
        )


def test_a_chunk_store_that_has_moved_is_noted(url):
    before = sql.SqlCatalog(url).repository()
    moved = {'chunk_store': 'file:///chunks,/more', 'is_moved': True}
    schema.initialise(url, dedupe_scope='repository', **moved)
    after = sql.SqlCatalog(url).repository()
    assert after.chunk_store == 'file:///chunks,/more'
    assert after.uuid == before.uuid
    with pytest.raises(exceptions.Conflict, match='repository'):
        schema.initialise(url, dedupe_scope='project', **moved)


class TestMove:
    """To another database, here to another file."""

    @pytest.fixture
    def other(self, tmp_path):
        return f'sqlite:///{tmp_path}/other.sqlite'

    def test_everything_goes_and_stays_valid(self, url, other):
        old = sql.SqlCatalog(url)
        catalog_contract.make(old, name='debian')
        epoch = catalog_contract.attach(old)
        location = old.mint_location('image', 1)
        old.delete(catalog_contract.make(old, 'gone').blob_id)
        told = []
        moving.move(url, other, told.append)
        new = sql.SqlCatalog(other)
        assert new.repository() == old.repository()
        assert new.list_versions() == old.list_versions()
        assert new.list_blobs() == old.list_blobs()
        assert new.sessions() == old.sessions()
        assert new.check_location(location).number == 1
        assert told == sorted(told) and told[-1] >= 7
        # Who writes to a disk goes on, and a tombstone is one.
        assert catalog_contract.publish(new, epoch).number == 2
        with pytest.raises(exceptions.NotFound):
            new.get('gone')

    def test_nobody_writes_meanwhile(self, url, other, monkeypatch):
        catalog = sql.SqlCatalog(url)
        monkeypatch.setattr(engine, '_BUSY_TIMEOUT_SECONDS', 0)
        monkeypatch.setattr(passing, 'PATIENCE_SECONDS', 0)

        def write(_):
            with pytest.raises(exceptions.CatalogUnavailable, match='locked'):
                catalog.begin_session('test', 'late')

        moving.move(url, other, write)

    def test_a_database_that_is_used_is_refused(self, url, other, template):
        shutil.copy(template, other.removeprefix('sqlite:///'))
        for target in (other, url):
            with pytest.raises(exceptions.Conflict, match='already'):
                moving.move(url, target)

    def test_one_that_fails_leaves_an_empty_one(self, url, other):
        catalog_contract.make(sql.SqlCatalog(url))

        def fail(done):
            if done > 1:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            moving.move(url, other, fail)
        with pytest.raises(exceptions.NotFound, match='init'):
            sql.SqlCatalog(other).repository()
        moving.move(url, other)
        assert sql.SqlCatalog(other).version('image')

    def test_what_is_no_catalog_is_not_moved(self, tmp_path, other):
        with pytest.raises(exceptions.NotFound, match='lazyimage init'):
            moving.move(f'sqlite:///{tmp_path}/nix.sqlite', other)
        assert not (tmp_path / 'other.sqlite').exists()


def test_the_services_of_a_group_share_the_file(tmp_path):
    before = os.umask(0o077)
    try:
        schema.upgrade(f'sqlite:///{tmp_path}/catalog.sqlite')
    finally:
        os.umask(before)
    mode = (tmp_path / 'catalog.sqlite').stat().st_mode
    assert stat.S_IMODE(mode) == 0o660


def test_the_migrations_lead_to_the_models(url):
    bind = engine.create(url)
    with bind.connect() as connection:
        context = alembic.migration.MigrationContext.configure(connection)
        assert context.get_current_revision() == sql.REVISION
        assert not alembic.autogenerate.compare_metadata(
            context, models.Base.metadata
        )


def test_the_migrations_lead_back(url):
    schema.downgrade(url, 'base')
    bind = engine.create(url)
    assert sa.inspect(bind).get_table_names() == ['alembic_version']
    schema.upgrade(url)


def test_what_was_committed_is_durable(url):
    bind = engine.create(url)
    with bind.connect() as connection:
        full = 2
        pragma = connection.exec_driver_sql('PRAGMA synchronous').scalar()
        assert pragma == full


def test_only_what_need_not_survive_power_loss_is_not_synced(url):
    """What is synced afterwards takes along what was not."""
    database = engine.Database(url)

    def level(session):
        connection = session.connection()
        return connection.exec_driver_sql('PRAGMA synchronous').scalar()

    normal, full = 1, 2
    assert database.write(level, is_synced=False) == normal
    assert database.write(level) == full
    database.close()


def test_a_writer_that_waits_too_long_may_try_again(
    url, tmp_path, monkeypatch
):
    monkeypatch.setattr(engine, '_BUSY_TIMEOUT_SECONDS', 0.1)
    with sqlite3.connect(tmp_path / 'catalog.sqlite') as connection:
        connection.execute('BEGIN IMMEDIATE')
        with pytest.raises(exceptions.CatalogUnavailable, match='locked'):
            catalog_contract.make(sql.SqlCatalog(url))


@pytest.mark.parametrize(
    'url',
    ['sqlite://', 'sqlite:///relative', 'nix://host/name', 'mysql+nix://h/n'],
)
def test_a_url_that_cannot_work_is_refused(url):
    with pytest.raises(exceptions.InvalidConfiguration):
        sql.SqlCatalog(url).repository()


def test_passwords_are_not_told(monkeypatch):
    monkeypatch.setattr(passing, 'PATIENCE_SECONDS', 0.1)
    catalog = sql.SqlCatalog('mysql+pymysql://user:hunter2@127.0.0.1:1/x')
    with pytest.raises(exceptions.CatalogUnavailable) as caught:
        catalog.repository()
    assert 'hunter2' not in str(caught.value)
    assert 'user:***@127.0.0.1' in str(caught.value)
