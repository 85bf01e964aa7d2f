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
"""What every database owes the catalog: old formats, and plans by indexes.

Inherit :class:`DatabaseContract` in a test module and give it the fixtures
``empty_database``, the URL of a database without tables, and ``plan``, a
function that answers a statement's plan as text and raises AssertionError if
it reads a large table from end to end.
"""

import concurrent.futures
import dataclasses
import datetime
import pathlib
import re

import catalog_contract
import pytest
import sqlalchemy as sa

from lazyblob import exceptions
from lazyblob.catalog import api
from lazyblob.catalog import engine
from lazyblob.catalog import models
from lazyblob.catalog import schema
from lazyblob.catalog import sql

GOLDEN = pathlib.Path(__file__).with_name('golden')
#: Of each released format: a location that it minted.
RELEASED = {
    '0001': 'blob://a17d9456-1e6a-432f-8106-d94426790c5e/image/1?mac='
    '4ae481ebcaed432c1a54b7580893b630b486769bc7d25efa49c907e4c02e05e8',
}
_LARGE = r'(blobs|versions|sessions)'
SECOND = datetime.timedelta(seconds=1)
_LONG_AGO = datetime.datetime(2020, 1, 1)


def fill(bind, count, prefix='old'):
    """Blobs, each with a version and the ended session of its writer."""
    for first in range(0, count, 1000):
        names = [f'{prefix}-{n:07}' for n in range(first, first + 1000)]
        with bind.begin() as connection:
            connection.execute(
                sa.insert(models.Blob),
                [
                    {
                        'id': name,
                        'name': f'name of {name}',
                        'kind': 'image',
                        'state': 'active',
                        'project_id': f'project-{first}',
                        'chunk_size_bytes': catalog_contract.CHUNK_BYTES,
                        'scope': 'repository',
                        'epoch': 1,
                        'head': 1,
                        'pinned': 0,
                        'secret': '',
                        'origin': f'origin of {name}',
                        'origin_version': 1,
                        'created_at': _LONG_AGO,
                    }
                    for name in names
                ],
            )
            connection.execute(
                sa.insert(models.Version),
                [
                    {
                        'blob_id': name,
                        'number': 1,
                        'root': catalog_contract.ROOT,
                        'size_bytes': 1 << 30,
                        'project_id': 'p',
                        'commit_id': 'c',
                        'created_at': _LONG_AGO,
                    }
                    for name in names
                ],
            )
            connection.execute(
                sa.insert(models.Session),
                [
                    {
                        'id': f'session of {name}',
                        'owner': 'host',
                        'started_at': _LONG_AGO,
                        'ended_at': _LONG_AGO + n * SECOND,
                    }
                    for n, name in enumerate(names, first)
                ],
            )


def analyze(bind):
    """Let the optimizer know how large the tables are."""
    statement = {
        'mysql': 'ANALYZE TABLE blobs, versions, sessions',
        'mariadb': 'ANALYZE TABLE blobs, versions, sessions',
    }.get(bind.dialect.name, 'ANALYZE')
    with bind.begin() as connection:
        connection.exec_driver_sql(statement)


def work(catalog):
    """Every operation that must not become slow with the years."""
    make, attach = catalog_contract.make, catalog_contract.attach
    make(catalog, name='debian')
    catalog.find('debian')
    catalog.find('image')
    catalog.get('image')
    catalog.version('image')
    catalog.version('image', 1)
    catalog.versions('image')
    catalog.list_versions('old-0000100', 1, limit=100)
    catalog.clones('image')
    catalog.sessions()
    epoch = attach(catalog)
    image = api.NewImage('snapshot', 'p1')
    for parent in (1, 2, 3):
        catalog_contract.publish(
            catalog, epoch, parent, f'c{parent}', image=image, drop_parent=True
        )
        image = None
    catalog_contract.publish(catalog, epoch, 3, 'c3')  # repeated
    catalog.find_commit('disk', 'c2')
    for number in (1, 2):
        version = foreign_version(number)
        catalog.receive(foreign(), version, session_id='writer')
    catalog.activate('snapshot')
    catalog.check_location(catalog.mint_location('image', 1))
    catalog_contract.publish(catalog, epoch, 4, 'c4')
    catalog.delete_version('disk', 4)
    catalog.end_session('writer')
    catalog.delete('disk', secret='secret')
    catalog.delete('image')
    make(catalog)  # again


def foreign():
    """A blob of another repository."""
    return api.Blob(
        id='far',
        name='far away',
        kind=api.Kind.IMAGE,
        state=api.State.ACTIVE,
        project_id='p1',
        chunk_size_bytes=catalog_contract.CHUNK_BYTES,
        scope='repository',
        epoch=1,
        head=0,
        origin='of old',
        origin_version=4,
        created_at='2020-01-02T03:04:05Z',
    )


def foreign_version(number):
    return api.Version(
        blob_id='far',
        number=number,
        root=catalog_contract.ROOT,
        size_bytes=1 << 30,
        project_id='p1',
        commit_id=f'commit {number}',
        created_at='2020-02-03T04:05:06Z',
    )


class DatabaseContract:
    @pytest.mark.parametrize('revision', sorted(RELEASED))
    def test_a_released_format_is_upgraded_with_its_data(
        self, empty_database, revision
    ):
        schema.upgrade(empty_database, revision)
        bind = engine.create(empty_database)
        inserts = (GOLDEN / f'catalog-{revision}.sql').read_text()
        with bind.begin() as connection:
            for statement in re.split(r';\n', inserts.strip().rstrip(';')):
                connection.exec_driver_sql(statement)
        bind.dispose()
        schema.upgrade(empty_database)
        catalog = sql.SqlCatalog(empty_database)
        assert catalog.check_location(RELEASED[revision]) == catalog.version(
            'image'
        )
        assert catalog.find('debian').id == 'image'
        assert [v.number for v in catalog.versions('disk')] == [1, 2, 3]
        assert catalog.get('snapshot').state is api.State.PROVISIONAL
        assert [b.id for b in catalog.clones('image')] == ['disk']
        assert 'abandoned' in [s.id for s in catalog.sessions()]
        # What it says of writers is still in force.
        made = catalog_contract.publish(catalog, 2, 3, 'c3')
        assert made.number == 4
        image = catalog_contract.make(catalog, 'deleted')
        assert image.number == 2
        catalog.close()

    @pytest.fixture
    def receiver(self, empty_database):
        schema.initialise(
            empty_database,
            chunk_store='file:///chunks',
            dedupe_scope='repository',
        )
        catalog = sql.SqlCatalog(empty_database)
        catalog.begin_session('test', 'copy')
        yield catalog
        catalog.close()

    def test_a_version_is_received_once(self, receiver):
        blob = foreign()
        for number in (7, 3, 9):
            version = foreign_version(number)
            assert receiver.received(blob, version) is None
            for _ in range(2):
                made = receiver.receive(blob, version, session_id='copy')
                assert made == version
            assert receiver.received(blob, version) == version
        found = receiver.get('far')
        assert found == dataclasses.replace(blob, head=9)
        assert [v.number for v in receiver.versions('far')] == [3, 7, 9]
        # And it is a blob like any other: what follows counts on.
        epoch = receiver.claim('far', 'secret')
        made = receiver.publish(
            'far',
            epoch=epoch,
            parent=9,
            commit_id='mine',
            root=catalog_contract.ROOT,
            size_bytes=1 << 30,
            session_id='copy',
            secret='secret',
        )
        assert made.number == 10

    def test_of_many_who_receive_one_version_all_are_answered(
        self, receiver, empty_database
    ):
        blob, version = foreign(), foreign_version(1)

        def receive(_):
            catalog = sql.SqlCatalog(empty_database)
            try:
                return catalog.receive(blob, version, session_id='copy')
            finally:
                catalog.close()

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            assert list(pool.map(receive, range(8))) == [version] * 8
        assert receiver.versions('far') == [version]

    def test_what_cannot_be_received_is_refused(self, receiver):
        blob, version = foreign(), foreign_version(2)
        receiver.receive(blob, version, session_id='copy')
        catalog_contract.make(receiver, 'deleted')
        receiver.delete('deleted')
        receiver.begin_session('test', 'ended')
        receiver.end_session('ended')

        def refuse(reason, session_id='copy', number=2, commit='', **changed):
            other = foreign_version(number)
            if commit:
                other = dataclasses.replace(other, commit_id=commit)
            with pytest.raises(exceptions.Conflict, match=reason):
                receiver.receive(
                    dataclasses.replace(blob, **changed),
                    other,
                    session_id=session_id,
                )

        refuse('name "far away" .* used', id='new')
        refuse('another blob', created_at='2021-01-01T00:00:00Z')
        refuse('another blob', project_id='p2')
        refuse('another blob', chunk_size_bytes=8192)
        refuse('deleted', id='deleted')
        refuse('another one there', commit='another')
        refuse('another one there', number=3, commit='commit 2')
        refuse('session', number=3, session_id='ended')
        refuse('session', id='new', name='', session_id='nix')
        # Who writes to it is not overtaken; what is older harms nobody.
        receiver.claim('far', 'secret')
        refuse('attached', number=3)
        receiver.receive(blob, foreign_version(1), session_id='copy')
        assert receiver.get('far').head == 2

    def test_no_operation_reads_a_table_from_end_to_end(
        self, empty_database, plan
    ):
        schema.initialise(
            empty_database,
            chunk_store='file:///chunks',
            dedupe_scope='repository',
        )
        catalog = sql.SqlCatalog(empty_database)
        catalog.repository()
        bind = catalog._database.engine
        fill(bind, 2000)
        analyze(bind)
        statements = {}

        def note(_connection, _cursor, statement, parameters, *_):
            if re.match(r'(SELECT|UPDATE|DELETE)\b', statement):
                statements.setdefault(statement, parameters)

        sa.event.listen(bind, 'before_cursor_execute', note)
        work(catalog)
        sa.event.remove(bind, 'before_cursor_execute', note)
        assert len(statements) > 15
        with bind.connect() as connection:
            for statement, parameters in statements.items():
                plan(connection, statement, parameters)
            with pytest.raises(AssertionError):
                plan(connection, 'SELECT * FROM versions WHERE size_bytes=1')
        catalog.close()


def plan_of_sqlite(connection, statement, parameters=()):
    rows = connection.exec_driver_sql(
        f'EXPLAIN QUERY PLAN {statement}', parameters
    )
    for *_, detail in rows:
        assert not re.match(rf'SCAN {_LARGE}', detail), (statement, detail)


def plan_of_mariadb(connection, statement, parameters=()):
    rows = connection.exec_driver_sql(f'EXPLAIN {statement}', parameters)
    for row in rows.mappings():
        is_whole = row['type'] in ('ALL', 'index')
        is_large = re.fullmatch(_LARGE, row['table'] or '')
        assert not (is_whole and is_large), (statement, dict(row))


def plan_of_postgresql(connection, statement, parameters=()):
    rows = connection.exec_driver_sql(f'EXPLAIN {statement}', parameters)
    text = '\n'.join(line for (line,) in rows)
    assert not re.search(rf'Seq Scan on {_LARGE}', text), (statement, text)


PLANS = {
    'sqlite': plan_of_sqlite,
    'mariadb': plan_of_mariadb,
    'postgresql': plan_of_postgresql,
}
