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
"""What publishing and opening cost once a catalog holds 100,000 versions.

Beside an empty catalog, on SQLite and on those of MariaDB and PostgreSQL that
are installed: the same calls on the same server, databases apart. Nothing of
chunks is in the figures.
"""

import importlib
import itertools
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from bench import harness

VERSIONS = int(os.environ.get('LAZYIMAGE_BENCH_VERSIONS', '100000'))
CALLS = int(os.environ.get('LAZYIMAGE_BENCH_CALLS', '200'))
OPERATIONS = ('publish', 'open')
WORSE_AT_MOST = 1.2
ROOT = '5a' * 32
_TESTS = pathlib.Path(__file__).parents[1] / 'tests'
_FOLDERS = ('unit/lazyblob', 'functional/lazyblob', 'functional/conductor')


def load(name: str) -> Any:
    """A module that the tests have: servers, and rows to fill tables with."""
    for folder in _FOLDERS:
        path = str(_TESTS / folder)
        if path not in sys.path:
            sys.path.append(path)
    return importlib.import_module(name)


def servers() -> list[str]:
    """Those that are installed."""
    places = os.environ['PATH'] + ''.join(
        f':{path}'
        for path in [
            '/usr/sbin',
            *pathlib.Path('/usr/lib/postgresql').glob('*/bin'),
        ]
    )
    programs = {'MariaDB': 'mariadbd', 'PostgreSQL': 'initdb'}
    return [
        name
        for name, program in programs.items()
        if shutil.which(program, path=places)
    ]


class Place:
    """The databases of all contenders, made when the first one needs them."""

    def __init__(self, work: pathlib.Path) -> None:
        self._work = work
        self._servers: dict[str, tuple[Any, Any]] = {}
        self._numbers = itertools.count(1)

    def url(self, engine: str) -> str:
        number = next(self._numbers)
        if engine == 'SQLite':
            return f'sqlite:///{self._work}/catalog-{number}.sqlite'
        if engine not in self._servers:
            folder = tempfile.TemporaryDirectory(prefix='bench')
            server = getattr(load('databases'), engine)(
                pathlib.Path(folder.name)
            )
            self._servers[engine] = folder, server
        url: str = self._servers[engine][1].create(f'catalog_{number}')
        return url

    def close(self) -> None:
        while self._servers:
            folder, server = self._servers.popitem()[1]
            server.end(signal.SIGTERM)
            folder.cleanup()


class Catalogs:
    """One catalog on each engine.

    :param versions: how many rows of blobs, versions and sessions it has
    """

    def __init__(self, name: str, versions: int, place: Place) -> None:
        self.name = name
        self._versions = versions
        self._place = place
        self._catalogs: dict[str, Any] = {}
        self._parents: dict[str, int] = {}
        self._random = random.Random(1)

    def prepare(self) -> None:
        from lazyblob.catalog import api
        from lazyblob.catalog import schema
        from lazyblob.catalog import sql

        rows = load('database_contract')
        for engine in ('SQLite', *servers()):
            url = self._place.url(engine)
            schema.initialise(
                url, chunk_store='file:///none', dedupe_scope='repository'
            )
            catalog = sql.SqlCatalog(url)
            catalog.repository()
            bind = catalog._database.engine
            rows.fill(bind, self._versions)
            rows.analyze(bind)
            catalog.begin_session('bench', 'session')
            catalog.create(
                'disk',
                kind=api.Kind.DISK,
                project_id='p',
                chunk_size_bytes=524288,
            )
            self._catalogs[engine] = catalog
            self._parents[engine] = 0
            self._publish(engine)

    def has(self, case: str) -> bool:
        return case in _CASES

    def sample(self, case: str) -> harness.Measurements:
        engine, operation = case.split()
        act: Callable[[str], None] = getattr(self, f'_{operation}')
        act(engine)  # whatever the first call costs
        begun = time.perf_counter()
        for _ in range(CALLS):
            act(engine)
        seconds = time.perf_counter() - begun
        return {case: seconds / CALLS * 1000}

    def cleanup(self) -> None:
        for catalog in self._catalogs.values():
            catalog.close()
        self._place.close()

    def _publish(self, engine: str) -> None:
        parent = self._parents[engine]
        self._catalogs[engine].publish(
            'disk',
            epoch=1,
            parent=parent,
            commit_id=f'commit-{parent}',
            root=ROOT,
            size_bytes=1 << 30,
            session_id='session',
            drop_parent=True,
        )
        self._parents[engine] += 1

    def _open(self, engine: str) -> None:
        name = 'disk'
        if self._versions:
            name = f'old-{self._random.randrange(self._versions):07}'
        catalog = self._catalogs[engine]
        catalog.get(name)
        catalog.version(name)


def contenders(work: pathlib.Path) -> list[Catalogs]:
    place = Place(work)
    return [
        Catalogs('empty', 0, place),
        Catalogs('full', VERSIONS, place),
    ]


_CASES = [
    f'{engine} {operation}'
    for engine in ('SQLite', *servers())
    for operation in OPERATIONS
]
BENCH = harness.Bench(
    name='catalog',
    summary=f'publish and open in a catalog of {VERSIONS:,} versions, and '
    'in an empty one',
    metrics=[harness.Metric(case, 'ms') for case in _CASES],
    baseline='empty',
    contenders=contenders,
    goals=[
        harness.Goal(case, 'full', at_least=1 / WORSE_AT_MOST)
        for case in _CASES
    ],
    rounds=7,
)
