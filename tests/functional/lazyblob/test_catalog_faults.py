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
"""Whatever happens to its connection, an operation is done once.

Every operation that writes is cut off at each of its statements, BEGIN and
COMMIT included, before the server saw it and after it was done; killed by an
administrator; and caught by a server that dies and comes back. The answers
and what stands afterwards are those of a run that nothing befell.
"""

import dataclasses
import itertools
import signal
import threading

import catalog_contract
import cutting
import databases
import pytest
import sqlalchemy as sa

from lazyblob import exceptions
from lazyblob.catalog import api
from lazyblob.catalog import passing
from lazyblob.catalog import sql

STATEMENTS_MAX = 40
_numbers = itertools.count(1)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Nobody else is there to make way for."""
    monkeypatch.setattr(passing, '_PAUSE_SECONDS_MIN', 0.001)


@pytest.fixture
def catalog(url):
    made = sql.SqlCatalog(url)
    made.repository()
    yield made
    made.close()


class Story:
    """Every operation that writes, with what it must answer.

    :param before: called before each
    :param after: called after each
    """

    def __init__(self, catalog, before, after):
        self.catalog = catalog
        self.before, self.after = before, after
        self.suffix = f'-{next(_numbers)}'
        self.answers = []

    def tell(self):
        """All of it; the answers and what is left."""
        s = self.suffix
        image, disk, snapshot = f'image{s}', f'disk{s}', f'snapshot{s}'
        session = f'session{s}'
        make = {
            'kind': api.Kind.IMAGE,
            'project_id': 'p1',
            'chunk_size_bytes': catalog_contract.CHUNK_BYTES,
        }
        publish = {
            'root': catalog_contract.ROOT_2,
            'size_bytes': catalog_contract.SIZE_BYTES,
            'session_id': session,
        }
        attached = {**publish, 'secret': 's'}
        do = self.do
        do('begin_session', 'test', session)
        do('create', image, name=f'name{s}', **make)
        do('publish', image, epoch=1, parent=0, commit_id='up', **publish)
        disk_clone = {'blob_id': disk, 'kind': api.Kind.DISK}
        do('clone', image, None, project_id='p1', **disk_clone)
        # A repeated claim raises it once more, which harms nobody.
        attached['epoch'] = self.call('claim', disk, 's')
        do(
            'publish',
            disk,
            parent=1,
            commit_id='c1',
            image=api.NewImage(snapshot, 'p1'),
            drop_parent=True,
            **attached,
        )
        do('publish', disk, parent=2, commit_id='c2', **attached)
        do('delete_version', disk, 2)
        do('activate', snapshot)
        do('delete', image, project_id='p1')
        do('create', image, name=f'name{s}', **make)
        do('publish', image, epoch=2, parent=1, commit_id='up2', **publish)
        left = [
            self.plain(blob)
            for blob in sorted(self.catalog.list_blobs(), key=lambda b: b.id)
            if blob.id.endswith(s)
        ]
        left += [
            self.plain(version)
            for blob in (image, disk, snapshot)
            for version in self.catalog.versions(blob)
        ]
        do('delete', disk, secret='s')
        do('end_session', session)
        with pytest.raises(exceptions.NotFound):
            self.catalog.get(disk)
        return [*self.answers, *left]

    def do(self, operation, *arguments, **more):
        found = self.call(operation, *arguments, **more)
        self.answers.append(self.plain(found))

    def call(self, operation, *arguments, **more):
        self.before()
        try:
            return getattr(self.catalog, operation)(*arguments, **more)
        finally:
            self.after()

    def plain(self, value):
        """Without what differs between two runs of the story."""
        if not dataclasses.is_dataclass(value):
            return value
        fields = dataclasses.asdict(value)
        fields.pop('created_at')
        if fields.get('kind') is api.Kind.DISK:
            fields.pop('epoch')
        return {
            key: str(item).replace(self.suffix, '')
            for key, item in fields.items()
        }


def nothing():
    pass


def tell(catalog, before=nothing, after=nothing):
    return Story(catalog, before, after).tell()


@pytest.mark.parametrize('is_answer', [False, True], ids=['burst', 'answer'])
def test_a_connection_that_is_cut_at_any_statement_changes_nothing(
    server, url, catalog, tmp_path_factory, is_answer
):
    expected = tell(catalog)
    # The path of a socket is at most 107 bytes long.
    folder = tmp_path_factory.mktemp('cut')
    cutter = cutting.Cutter(folder, server.socket)
    database = sa.make_url(url).database
    cut_off = sql.SqlCatalog(server.url(database, cutter.socket))
    cut_off.repository()
    total = 0
    for burst in range(1, STATEMENTS_MAX):
        cuts = []

        def after(cuts=cuts):
            cutter.disarm()
            cuts.append(cutter.has_cut)

        assert expected == tell(
            cut_off,
            lambda burst=burst: cutter.arm(burst, is_answer=is_answer),
            after,
        ), f'cut at statement {burst}'
        total += sum(cuts)
        if not any(cuts):
            break
    else:
        pytest.fail('the story has no end')
    cut_off.close()
    cutter.close()
    assert burst > 5
    assert total > 50, 'hardly anything was cut: this proves nothing'


class Killer:
    """Does something before the n-th statement, or the commit after it."""

    def __init__(self, catalog, act):
        self.left = 0
        self.has_acted = False
        self._act = act
        engine = catalog._database.engine
        sa.event.listen(engine, 'before_cursor_execute', self._statement)
        sa.event.listen(engine, 'commit', self._count)

    def arm(self, nth):
        self.left, self.has_acted = nth, False

    def _statement(self, connection, *_):
        self._count(connection)

    def _count(self, connection):
        self.left -= 1
        if self.left == 0:
            self.has_acted = True
            self._act(connection)


def own_id(connection):
    raw = connection.connection.dbapi_connection
    info = getattr(raw, 'info', None)
    return info.backend_pid if info else raw.thread_id()


def test_a_connection_that_is_killed_at_any_statement_changes_nothing(
    server, catalog
):
    expected = tell(catalog)
    killer = Killer(
        catalog,
        lambda connection: server.execute(server.kill_sql(own_id(connection))),
    )
    total = 0
    for nth in range(1, STATEMENTS_MAX):
        kills = []
        assert expected == tell(
            catalog,
            lambda nth=nth: killer.arm(nth),
            lambda kills=kills: kills.append(killer.has_acted),
        ), f'killed at statement {nth}'
        total += sum(kills)
        if not any(kills):
            break
    assert total > 30, 'hardly anything was killed: this proves nothing'


@pytest.mark.parametrize('nth', [1, 3])
def test_a_server_that_dies_meanwhile_changes_nothing(server, catalog, nth):
    """It comes back within the patience; committed rows are all there."""
    expected = tell(catalog)
    back = []

    def die(_connection):
        server.end(signal.SIGKILL)
        thread = threading.Thread(target=server.start)
        thread.start()
        back.append(thread)

    killer = Killer(catalog, die)
    calls = itertools.count()

    def before():
        # The publish of a snapshot.
        if next(calls) == 5:
            killer.arm(nth)

    assert expected == tell(catalog, before)
    assert len(back) == 1, 'the server was not killed: this proves nothing'
    back[0].join()


def test_who_loses_a_deadlock_tries_again(server, url, catalog, monkeypatch):
    """Publish holds the blob and wants its session; a stranger the reverse."""
    tries = []
    kind = passing.kind
    monkeypatch.setattr(
        passing, 'kind', lambda exc: tries.append(kind(exc)) or tries[-1]
    )
    catalog_contract.make(catalog)
    epoch = catalog_contract.attach(catalog)
    bind = sa.create_engine(url)
    with bind.begin() as stranger:
        # MariaDB spares who did more.
        for number in range(200):
            stranger.exec_driver_sql(
                'INSERT INTO sessions (id, owner, started_at) VALUES '
                f"('s{number}', 'stranger', '2026-01-01')"
            )
        stranger.exec_driver_sql(
            "UPDATE sessions SET owner = 'stranger' WHERE id = 'writer'"
        )
        answers = []
        publishing = threading.Thread(
            target=lambda: answers.append(
                catalog_contract.publish(catalog, epoch)
            )
        )
        publishing.start()
        server.wait_until_blocked()
        stranger.exec_driver_sql(
            "UPDATE blobs SET name = 'stranger' WHERE id = 'disk'"
        )
    publishing.join()
    bind.dispose()
    assert tries == [passing.Failure.CONFLICT]
    assert [answer.number for answer in answers] == [2]
    assert len(catalog.versions('disk')) == 2


@pytest.mark.parametrize('code', sorted(passing._MYSQL_CONFLICTS | {1047}))
def test_what_galera_undoes_is_done_again(server, url, catalog, code):
    """A node that certifies nothing, or is not ready, says so by a code."""
    if not isinstance(server, databases.MariaDB):
        return  # Galera is MariaDB's.
    catalog_contract.make(catalog)
    epoch = catalog_contract.attach(catalog)
    database = sa.make_url(url).database
    server.execute(
        'CREATE TRIGGER undone BEFORE UPDATE ON blobs FOR EACH ROW '
        'IF @undone IS NULL THEN SET @undone = 1; SIGNAL SQLSTATE '
        f"'40001' SET MYSQL_ERRNO = {code}; END IF",
        database=database,
    )
    try:
        assert catalog_contract.publish(catalog, epoch).number == 2
    finally:
        server.execute('DROP TRIGGER undone', database=database)
    assert len(catalog.versions('disk')) == 2
