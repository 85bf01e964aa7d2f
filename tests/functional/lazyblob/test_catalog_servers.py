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
"""The catalog in real servers: MariaDB, PostgreSQL."""

import threading

import alembic.autogenerate
import alembic.migration
import catalog_contract
import database_contract
import pytest
import sqlalchemy as sa

from lazyblob import exceptions
from lazyblob.catalog import engine
from lazyblob.catalog import models
from lazyblob.catalog import schema
from lazyblob.catalog import sql


@pytest.fixture
def open_catalog(url):
    return lambda: sql.SqlCatalog(url)


class TestServers(catalog_contract.CatalogContract):
    """The contract."""


class TestDatabases(database_contract.DatabaseContract):
    @pytest.fixture
    def plan(self, server):
        return database_contract.PLANS[server.name]

    def test_a_blob_received_between_two_looks_is_met(
        self, receiver, empty_database
    ):
        blob = database_contract.foreign()
        version = database_contract.foreign_version(1)
        other = sql.SqlCatalog(empty_database)
        others = []

        def overtake(_connection, _cursor, statement, *_):
            if 'blobs.name = ' in statement and not others:
                others.append(other.receive(blob, version, session_id='copy'))

        bind = receiver._database.engine
        sa.event.listen(bind, 'before_cursor_execute', overtake)
        assert receiver.receive(blob, version, session_id='copy') == version
        assert others == [version]
        other.close()


def test_the_migrations_lead_to_the_models_and_back(empty_database):
    schema.upgrade(empty_database)
    bind = engine.create(empty_database)
    with bind.connect() as connection:
        context = alembic.migration.MigrationContext.configure(connection)
        assert not alembic.autogenerate.compare_metadata(
            context, models.Base.metadata
        )
    bind.dispose()
    schema.downgrade(empty_database, 'base')
    schema.upgrade(empty_database)


def test_a_database_without_tables_is_no_repository(empty_database):
    catalog = sql.SqlCatalog(empty_database)
    with pytest.raises(exceptions.NotFound, match='lazyimage init'):
        catalog.repository()
    catalog.close()


def test_a_strangers_table_is_refused_by_its_name(mariadb):
    """Not taken for what an init that died has left."""
    url = mariadb.create('strange')
    mariadb.execute('CREATE TABLE sessions (id INT)', database='strange')
    with pytest.raises(exceptions.Conflict, match=r'"sessions".*of its own'):
        schema.upgrade(url)
    mariadb.execute('DROP TABLE sessions', database='strange')
    schema.upgrade(url)


def test_transactions_see_what_is_committed(url, server):
    """Of MariaDB's default, snapshots, nothing may be left in force."""
    bind = engine.create(url)
    with bind.connect() as connection:
        assert connection.get_isolation_level() == 'READ COMMITTED'
        look = {
            'mariadb': 'SELECT @@innodb_lock_wait_timeout, @@wsrep_sync_wait',
            'postgresql': "SELECT current_setting('lock_timeout'), "
            "current_setting('synchronous_commit')",
        }
        found = connection.exec_driver_sql(look[server.name]).one()
    bind.dispose()
    assert found in [(20, 7), ('20s', 'on')]


def test_a_server_that_forgets_at_power_loss_is_told_of(mariadb, expect_logs):
    url = mariadb.create('forgetful')
    setting = 'SET GLOBAL innodb_flush_log_at_trx_commit='
    mariadb.execute(f'{setting}2')
    try:
        with expect_logs('innodb_flush_log_at_trx_commit=2', count=1):
            for _ in range(2):
                bind = engine.create(url)
                bind.connect().close()
                bind.dispose()
    finally:
        mariadb.execute(f'{setting}1')


@pytest.mark.parametrize('ends_session', [False, True])
def test_a_session_that_ends_while_publish_waits_forbids_it(
    url, server, open_catalog, ends_session
):
    """What the statement saw before it waited for the blob is no answer."""
    catalog = open_catalog()
    catalog_contract.make(catalog)
    epoch = catalog_contract.attach(catalog)
    outcomes = []

    def publish():
        try:
            catalog_contract.publish(catalog, epoch, ends_session=ends_session)
        except exceptions.Conflict as exc:
            outcomes.append(str(exc))

    publishing = threading.Thread(target=publish)
    bind = sa.create_engine(url)
    with bind.connect() as stranger:
        stranger.exec_driver_sql(
            "UPDATE blobs SET name = 'stranger' WHERE id = 'disk'"
        )
        publishing.start()
        server.wait_until_blocked()
        open_catalog().end_session('writer')
        stranger.rollback()
    publishing.join()
    bind.dispose()
    assert len(outcomes) == 1
    assert 'session' in outcomes[0]
    assert catalog.version('disk').number == 1


def test_many_writers_of_many_blobs_do_not_hinder_one_another(open_catalog):
    """Deadlocks and changed records are repeated beneath the catalog."""
    faults = []
    barrier = threading.Barrier(8)

    def work(number):
        catalog = open_catalog()
        barrier.wait()
        try:
            for step in range(10):
                blob = f'blob-{number}-{step}'
                catalog_contract.make(catalog, blob)
                catalog_contract.attach(catalog, f'd-{blob}', blob)
                catalog.delete(f'd-{blob}', secret='secret')
                catalog.delete(blob)
        except Exception as exc:
            faults.append(exc)
        catalog.close()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
