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
"""The databases: made and migrated once, kept as a template.

Migrations take longer than everything else of a start, and their result is
the same for every instance of one recipe. So the data folders of MariaDB and
Keystone are copied aside once they are complete, and a new instance begins
with such a copy.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import os
import pathlib
import pwd
import shutil
import subprocess

from cloud import configuration
from cloud import identity
from cloud import settings
from cloud.api import Client
from cloud.process import Service
from cloud.process import ServiceError

NAMES = (
    'keystone',
    'glance',
    'placement',
    'nova',
    'nova_api',
    'nova_cell0',
    'lazyimage',
)
FOLDERS = (pathlib.Path('/var/lib/mysql'), pathlib.Path('/var/lib/keystone'))
SOCKET = '/run/mysqld/mysqld.sock'


def template() -> pathlib.Path:
    """Where the prepared folders for these environments are."""
    digest = hashlib.sha256()
    digest.update((settings.OPENSTACK / 'versions.txt').read_bytes())
    for name in ('database.py', 'settings.py', 'identity.py'):
        digest.update((pathlib.Path(__file__).parent / name).read_bytes())
    return settings.SHARED / f'databases-{digest.hexdigest()[:16]}'


def own(folder: pathlib.Path, user: str, mode: int = 0o755) -> None:
    """A folder of one service's user."""
    folder.mkdir(parents=True, exist_ok=True)
    entry = pwd.getpwnam(user)
    os.chown(folder, entry.pw_uid, entry.pw_gid)
    folder.chmod(mode)


def present() -> bool:
    """Whether this instance has its databases."""
    return (FOLDERS[0] / 'prepared').exists()


def restore() -> bool:
    """Begin with the template's copy; False if there is none."""
    source = template()
    if not source.is_dir():
        return False
    for folder in FOLDERS:
        copy(source / folder.name, folder)
    return True


def save() -> None:
    """Keep the folders of a stopped MariaDB as the template."""
    target = template()
    temporary = target.with_name(f'.{target.name}.{os.getpid()}')
    temporary.mkdir()
    for folder in FOLDERS:
        copy(folder, temporary / folder.name)
    with contextlib.suppress(OSError):
        temporary.rename(target)
    shutil.rmtree(temporary, ignore_errors=True)


def copy(source: pathlib.Path, target: pathlib.Path) -> None:
    target.mkdir(exist_ok=True)
    subprocess.run(
        ['cp', '-a', '--reflink=auto', f'{source}/.', str(target)], check=True
    )


def run(user: str, *command: str) -> None:
    """Run a command of a service as its user, with the log kept."""
    log = settings.LOG / 'database.log'
    path = os.environ['PATH']
    with log.open('ab') as stream:
        done = subprocess.run(
            [
                'setpriv',
                f'--reuid={user}',
                f'--regid={user}',
                '--init-groups',
                '--',
                *command,
            ],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={'PATH': path, 'HOME': f'/var/lib/{user}', 'LANG': 'C.UTF-8'},
            cwd='/',
        )
    if done.returncode:
        tail = log.read_text(errors='replace').splitlines()[-30:]
        raise ServiceError(' '.join(command) + ' failed:\n' + '\n'.join(tail))


def sql(text: str) -> str:
    """Run statements as MariaDB's root."""
    return subprocess.run(
        ['mariadb', '--no-defaults', f'--socket={SOCKET}', '--batch', '-N'],
        input=text,
        text=True,
        check=True,
        capture_output=True,
    ).stdout


def prepare(mariadb: Service, keystone: Service) -> None:
    """Make, migrate and fill the databases, then keep them as template."""
    own(FOLDERS[0], 'mysql', 0o700)
    own(FOLDERS[1], 'keystone')
    run(
        'mysql',
        'mariadb-install-db',
        '--no-defaults',
        f'--datadir={FOLDERS[0]}',
        '--skip-test-db',
        '--auth-root-authentication-method=socket',
        '--auth-root-socket-user=root',
    )
    mariadb.start()
    mariadb.wait_ready()
    statements = []
    for name in NAMES:
        user = name.partition('_')[0]
        statements.append(
            f'CREATE DATABASE {name} CHARACTER SET utf8mb3;'
            f"GRANT ALL ON {name}.* TO '{user}'@'%' "
            f"IDENTIFIED BY '{settings.PASSWORD}';"
        )
    # Nothing is lost with a template that was not finished.
    statements.append('SET GLOBAL innodb_flush_log_at_trx_commit = 0;')
    sql('\n'.join(statements))
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(job) for job in (_nova, _others)]
        for job in jobs:
            job.result()
    keystone.start()
    keystone.wait_ready()
    identity.register(Client())
    keystone.stop()
    mariadb.stop()
    (FOLDERS[0] / 'prepared').touch()
    save()


def _nova() -> None:
    manage = str(settings.OPENSTACK / 'bin/nova-manage')
    run('nova', manage, 'api_db', 'sync')
    run(
        'nova',
        manage,
        'cell_v2',
        'map_cell0',
        '--database_connection',
        settings.database_url('nova_cell0'),
    )
    run('nova', manage, 'cell_v2', 'create_cell', '--name', 'cell1')
    run('nova', manage, 'db', 'sync')
    # What discover_hosts does once the host has reported: here the host's
    # name is known before.
    sql(
        'INSERT INTO nova_api.host_mappings (created_at, cell_id, host) '
        f"SELECT NOW(), id, '{settings.HOST}' FROM nova_api.cell_mappings "
        "WHERE name = 'cell1';"
    )


def _others() -> None:
    bin_ = settings.OPENSTACK / 'bin'
    manage = str(bin_ / 'keystone-manage')
    keystone = ('--keystone-user', 'keystone', '--keystone-group', 'keystone')
    run('keystone', manage, 'db_sync')
    run('keystone', manage, 'fernet_setup', *keystone)
    run('keystone', manage, 'credential_setup', *keystone)
    run(
        'keystone',
        manage,
        'bootstrap',
        '--bootstrap-password',
        settings.PASSWORD,
        '--bootstrap-region-id',
        settings.REGION,
        '--bootstrap-public-url',
        settings.AUTH_URL,
        '--bootstrap-internal-url',
        settings.AUTH_URL,
        '--bootstrap-admin-url',
        settings.AUTH_URL,
    )
    run('placement', str(bin_ / 'placement-manage'), 'db', 'sync')
    run('glance', str(bin_ / 'glance-manage'), 'db', 'sync')


def configure_for_preparation() -> None:
    """The files that the migrations read."""
    configuration.keystone()
    configuration.placement()
    configuration.glance('stock')
    configuration.nova()
