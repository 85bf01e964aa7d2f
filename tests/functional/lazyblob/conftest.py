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
"""What the tests of the library on real servers share."""

import itertools
import os
import pathlib
import signal
import subprocess
import sys
import tempfile

import pytest

from lazyblob.catalog import engine
from lazyblob.catalog import models
from lazyblob.catalog import schema

# The servers are a module that these tests load by its name.
HERE = pathlib.Path(__file__).parent
CONTRACTS = pathlib.Path(__file__).parents[2] / 'unit' / 'lazyblob'
sys.path[:0] = [str(CONTRACTS), str(HERE)]
pytest.register_assert_rewrite(
    'catalog_contract',
    'database_contract',
    'lazyblob.chunk_store.conformance',
)

import databases  # noqa: E402 - found by the line above
import dying  # noqa: E402
import gateway as gateways  # noqa: E402
import places  # noqa: E402

MEMORY = '/dev/shm' if os.path.isdir('/dev/shm') else None
SERVERS = (databases.MariaDB, databases.PostgreSQL)
_numbers = itertools.count(1)


def _server(kind):
    with tempfile.TemporaryDirectory(prefix=kind.name) as folder:
        made = kind(pathlib.Path(folder))
        yield made
        made.end(signal.SIGTERM)


@pytest.fixture(scope='session')
def mariadb():
    yield from _server(databases.MariaDB)


@pytest.fixture(scope='session')
def postgresql():
    yield from _server(databases.PostgreSQL)


@pytest.fixture(scope='session', params=[kind.name for kind in SERVERS])
def server(request):
    """Each real server in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def empty_database(server):
    """URL of a database without tables."""
    return server.create(f'database_{next(_numbers)}')


@pytest.fixture(scope='session')
def initialised(server):
    made = server.create(f'catalog_{next(_numbers)}')
    schema.initialise(
        made, chunk_store='file:///chunks', dedupe_scope='repository'
    )
    return made


@pytest.fixture
def url(initialised):
    """URL of an empty catalog."""
    yield initialised
    # Emptied for the next test, which is quicker than made anew.
    bind = engine.create(initialised)
    with bind.begin() as connection:
        for table in reversed(models.Base.metadata.sorted_tables):
            if table.name != 'repository':
                connection.execute(table.delete())
    bind.dispose()


@pytest.fixture(scope='session')
def gateway(tmp_path_factory):
    """A real object gateway."""
    with gateways.Gateway(tmp_path_factory.mktemp('ceph')) as found:
        yield found


@pytest.fixture(scope='session')
def proxy(gateway):
    """Makes trouble on the way to it."""
    with gateways.proxy(gateway) as found:
        yield found


@pytest.fixture(scope='module')
def stage():
    """Where operations run in processes of their own."""
    with dying.Stage() as found:
        yield found


@pytest.fixture(scope='module')
def engines(request):
    """Places for repositories; its parameter names store and catalog.

    In memory: a process dies there and no host, and syncing takes no time.
    """
    store, catalog = request.param
    asked = request.getfixturevalue
    with tempfile.TemporaryDirectory(prefix='places', dir=MEMORY) as folder:
        found = places.Engines(
            folder,
            store,
            gateway=asked('gateway') if store == 'bucket' else None,
            server=asked(catalog) if catalog != 'sqlite' else None,
        )
        yield found
        found.close()


@pytest.fixture
def small(tmp_path):
    """A mounted tmpfs of 4 MiB."""
    if os.geteuid():
        pytest.skip('mounting needs root; run it as root')
    path = tmp_path / 'small'
    path.mkdir()
    subprocess.run(
        ['mount', '-t', 'tmpfs', '-o', 'size=4m', 'tmpfs', path], check=True
    )
    yield path
    subprocess.run(['umount', path], check=True)
