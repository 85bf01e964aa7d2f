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
"""Real database servers, started for tests as ordinary processes.

Each listens on a unix socket in its own folder and is ended by its pid. It
may be killed and started again on the same data.
"""

import abc
import os
import pathlib
import pwd
import shutil
import signal
import subprocess
import time
import urllib.parse

import pytest
import sqlalchemy as sa

START_SECONDS_MAX = 60
_PLACES = ':/usr/sbin:/usr/local/sbin:/usr/libexec'


class Server(abc.ABC):
    """One server, running.

    :param folder: below one that anybody may enter, which those of pytest
        are not: each pytest that starts closes them to others again
    """

    name: str
    user: str
    socket: pathlib.Path

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.data = folder / 'data'
        self.process: subprocess.Popen | None = None
        self._engines: dict[str, sa.Engine] = {}
        self._as_user: dict = {}
        if os.geteuid() == 0:
            # They refuse to run as root.
            user = pwd.getpwnam('nobody')
            self._as_user = {
                'user': user.pw_uid,
                'group': user.pw_gid,
                'extra_groups': [],
            }
            os.chown(folder, user.pw_uid, user.pw_gid)
        self.install()
        self.start()

    @abc.abstractmethod
    def install(self) -> None:
        """Make its data folder."""

    @abc.abstractmethod
    def command(self) -> list[str]:
        """What runs it in the foreground."""

    @abc.abstractmethod
    def url(self, database: str, socket: pathlib.Path | None = None) -> str:
        """A database's URL, also by way of another socket."""

    @abc.abstractmethod
    def kill_sql(self, connection_id: int) -> str:
        """What ends a connection."""

    ADMIN: str  # the database that always exists
    BLOCKED: str  # what answers a row while a transaction waits for a lock

    def wait_until_blocked(self) -> None:
        while not self.execute(self.BLOCKED):
            # MariaDB answers from a cache that who asks often keeps.
            time.sleep(0.15)

    def run(self, *command: str) -> None:
        done = subprocess.run(
            command, cwd=self.folder, capture_output=True, **self._as_user
        )
        if done.returncode:
            pytest.fail(f'{command[0]}: {done.stderr.decode()[-2000:]}')

    def start(self) -> None:
        with open(self.folder / 'log', 'ab') as log:
            self.process = subprocess.Popen(
                self.command(),
                cwd=self.folder,
                stdout=log,
                stderr=log,
                **self._as_user,
            )
        deadline = time.monotonic() + START_SECONDS_MAX
        while True:
            try:
                self.execute('SELECT 1')
                return
            except sa.exc.SQLAlchemyError as exc:
                if self.process.poll() is not None or (
                    time.monotonic() > deadline
                ):
                    said = (self.folder / 'log').read_text()
                    pytest.fail(f'{self.name} did not start: {exc}; {said}')
                time.sleep(0.05)

    def execute(self, *statements: str, database: str = '') -> list:
        """As an administrator; the rows of the last that answers some."""
        database = database or self.ADMIN
        engine = self._engines.get(database)
        if engine is None:
            engine = self._engines[database] = sa.create_engine(
                self.url(database),
                isolation_level='AUTOCOMMIT',
                pool_pre_ping=True,
                pool_size=1,
            )
        rows: list = []
        with engine.connect() as connection:
            for statement in statements:
                result = connection.exec_driver_sql(statement)
                rows = list(result) if result.returns_rows else rows
        return rows

    def create(self, database: str) -> str:
        """A new database's URL."""
        self.execute(f'CREATE DATABASE {database}')
        return self.url(database)

    def end(self, with_signal: int) -> None:
        assert self.process is not None
        while self._engines:
            self._engines.popitem()[1].dispose()
        self.process.send_signal(with_signal)
        self.process.wait()

    def restart(self) -> None:
        """As after a crash."""
        self.end(signal.SIGKILL)
        self.start()


class MariaDB(Server):
    name = 'mariadb'
    ADMIN = 'mysql'
    BLOCKED = (
        'SELECT 1 FROM information_schema.innodb_trx '
        "WHERE trx_state = 'LOCK WAIT'"
    )

    def install(self) -> None:
        self.socket = self.folder / 'socket'
        self.run(
            program('MariaDB', 'mariadb-install-db', 'mysql_install_db'),
            '--no-defaults',
            f'--datadir={self.data}',
            '--auth-root-authentication-method=normal',
            '--skip-test-db',
        )

    def command(self) -> list[str]:
        return [
            program('MariaDB', 'mariadbd', 'mysqld'),
            '--no-defaults',
            f'--datadir={self.data}',
            f'--socket={self.socket}',
            '--skip-networking',
            '--innodb-flush-log-at-trx-commit=1',
            '--innodb-buffer-pool-size=192M',
        ]

    def url(self, database: str, socket: pathlib.Path | None = None) -> str:
        place = urllib.parse.quote(str(socket or self.socket), safe='')
        return f'mysql+pymysql://root@localhost/{database}?unix_socket={place}'

    def kill_sql(self, connection_id: int) -> str:
        return f'KILL {connection_id}'


class PostgreSQL(Server):
    name = 'postgresql'
    ADMIN = 'postgres'
    BLOCKED = 'SELECT 1 FROM pg_locks WHERE NOT granted'

    def install(self) -> None:
        self.socket = self.folder / '.s.PGSQL.5432'
        self.run(
            program('PostgreSQL', 'initdb'),
            '--pgdata',
            str(self.data),
            '--username=root',
            '--auth=trust',
            '--no-locale',
            '--encoding=UTF8',
            '--no-sync',
        )

    def command(self) -> list[str]:
        return [
            program('PostgreSQL', 'postgres'),
            '-D',
            str(self.data),
            '-k',
            str(self.folder),
            '-c',
            'listen_addresses=',
            '-c',
            'shared_buffers=192MB',
        ]

    def end(self, with_signal: int) -> None:
        # Its children notice the death of their parent only by and by.
        quick = {signal.SIGKILL: signal.SIGQUIT, signal.SIGTERM: signal.SIGINT}
        super().end(quick[with_signal])

    def url(self, database: str, socket: pathlib.Path | None = None) -> str:
        place = urllib.parse.quote(str((socket or self.socket).parent))
        return f'postgresql+psycopg://root@/{database}?host={place}'

    def kill_sql(self, connection_id: int) -> str:
        return f'SELECT pg_terminate_backend({connection_id})'


def program(package: str, *names: str) -> str:
    """A program's path, or a failure that says what to install."""
    places = os.environ['PATH'] + _PLACES
    # Debian keeps those of each release of PostgreSQL apart.
    for path in sorted(pathlib.Path('/usr/lib/postgresql').glob('*/bin')):
        places += f':{path}'
    for name in names:
        found = shutil.which(name, path=places)
        if found:
            return found
    pytest.fail(
        f'{names[0]} is not installed; install {package} (Debian: '
        'mariadb-server, mariadb-client, postgresql)',
        pytrace=False,
    )
