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
"""The catalog in a real MariaDB."""

import itertools
import threading

import alembic.autogenerate
import alembic.migration
import catalog_contract
import pytest

from lazyblob.catalog import engine
from lazyblob.catalog import models
from lazyblob.catalog import schema
from lazyblob.catalog import sql

_numbers = itertools.count(1)


@pytest.fixture(scope='module')
def initialised(mariadb):
    made = mariadb(f'catalog_{next(_numbers)}')
    schema.initialise(
        made, chunk_store='file:///chunks', dedupe_scope='repository'
    )
    return made


@pytest.fixture
def url(initialised):
    yield initialised
    # Emptied for the next test, which is quicker than made anew.
    bind = engine.create(initialised)
    with bind.begin() as connection:
        for table in reversed(models.Base.metadata.sorted_tables):
            if table.name != 'repository':
                connection.execute(table.delete())
    bind.dispose()


@pytest.fixture
def open_catalog(url):
    return lambda: sql.SqlCatalog(url)


class TestMariaDB(catalog_contract.CatalogContract):
    """The contract."""


def test_the_migrations_lead_to_the_models_and_back(mariadb):
    url = mariadb('migrated')
    schema.upgrade(url)
    bind = engine.create(url)
    with bind.connect() as connection:
        context = alembic.migration.MigrationContext.configure(connection)
        assert not alembic.autogenerate.compare_metadata(
            context, models.Base.metadata
        )
    schema.downgrade(url, 'base')
    schema.upgrade(url)


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
