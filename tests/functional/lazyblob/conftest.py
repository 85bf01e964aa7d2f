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
"""A real MariaDB, started for these tests as an ordinary process."""

import os
import pathlib
import pwd
import shutil
import subprocess
import sys
import time

import pytest

CONTRACTS = pathlib.Path(__file__).parents[2] / 'unit' / 'lazyblob'
sys.path.insert(0, str(CONTRACTS))
pytest.register_assert_rewrite('catalog_contract', 'store_contract')

START_SECONDS_MAX = 60
_PLACES = ':/usr/sbin:/usr/local/sbin:/usr/libexec'


def _program(*names):
    for name in names:
        found = shutil.which(name, path=os.environ['PATH'] + _PLACES)
        if found:
            return found
    pytest.fail(
        f'{names[0]} is not installed; install it (Debian: '
        f'mariadb-server-core, mariadb-client-core)',
        pytrace=False,
    )


@pytest.fixture(scope='session')
def mariadb(tmp_path_factory):
    """A function of a database's name that makes it and answers its URL."""
    server = _program('mariadbd', 'mysqld')
    install = _program('mariadb-install-db', 'mysql_install_db')
    folder = tmp_path_factory.mktemp('mariadb')
    as_user = []
    if os.geteuid() == 0:
        # It refuses to run as root, and everything on the way must be open.
        user = pwd.getpwnam('nobody')
        as_user = ['--user=nobody']
        os.chown(folder, user.pw_uid, user.pw_gid)
        for parent in folder.parents:
            if parent.stat().st_uid == 0 and parent != pathlib.Path('/tmp'):
                parent.chmod(parent.stat().st_mode | 0o011)
    data = folder / 'data'
    subprocess.run(
        [
            install,
            '--no-defaults',
            f'--datadir={data}',
            '--auth-root-authentication-method=normal',
            '--skip-test-db',
            *as_user,
        ],
        check=True,
        capture_output=True,
    )
    socket = folder / 'socket'
    with open(folder / 'log', 'wb') as log:
        process = subprocess.Popen(
            [
                server,
                '--no-defaults',
                f'--datadir={data}',
                f'--socket={socket}',
                '--skip-networking',
                '--innodb-flush-log-at-trx-commit=1',
                '--innodb-buffer-pool-size=32M',
                *as_user,
            ],
            stdout=log,
            stderr=log,
        )

    def make(name):
        import pymysql

        connection = pymysql.connect(
            unix_socket=str(socket), user='root', autocommit=True
        )
        with connection, connection.cursor() as cursor:
            cursor.execute(f'CREATE DATABASE {name}')
        return f'mysql+pymysql://root@localhost/{name}?unix_socket={socket}'

    try:
        _wait_for(process, make, folder / 'log')
        yield make
    finally:
        process.terminate()
        process.wait()


def _wait_for(process, make, log):
    deadline = time.monotonic() + START_SECONDS_MAX
    while True:
        try:
            make('first')
            return
        except Exception as exc:
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f'MariaDB did not start: {exc}; {log.read_text()}')
            time.sleep(0.1)
