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
"""What the catalog's calls cost an agent: through a conductor, or by itself.

The database is MariaDB, and with it RabbitMQ, a conductor and those who ask
share the machine's processors. One call at a time, and by eight threads of
one process, each with a blob of its own.
"""

import concurrent.futures
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from typing import Any

from bench import catalog as catalogs
from bench import harness

CALLS = int(os.environ.get('LAZYIMAGE_BENCH_CALLS', '200'))
AT_ONCE = 8
START_SECONDS_MAX = 60
ITSELF, THROUGH = 'database itself', 'through a conductor'
LOOK_UP, PUBLISH = 'look-up', 'publish'
_ROOT = pathlib.Path(__file__).parents[1]
_CASES = {
    case if count == 1 else f'{case}, {count} at once': (case, count)
    for case in (LOOK_UP, PUBLISH)
    for count in (1, AT_ONCE)
}


class Site:
    """Bus, database and conductor, for both contenders."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix='bench')
        self._ends: list[Callable[[], object]] = []
        self.database = ''
        self.bus = ''

    def start(self) -> None:
        """Once; harmless when called again."""
        if self.database:
            return
        from lazyblob.catalog import schema

        rabbit = catalogs.load('rabbit')
        if 'MariaDB' not in catalogs.servers() or rabbit.program() is None:
            raise harness.Missing(
                'install mariadb-server and rabbitmq-server to compare a '
                'conductor'
            )
        work = pathlib.Path(self._folder.name)
        work.chmod(0o755)  # the database server is somebody else
        folders = [work / name for name in ('mariadb', 'rabbitmq')]
        for folder in folders:
            folder.mkdir()
        mariadb = catalogs.load('databases').MariaDB(folders[0])
        self._ends.append(lambda: mariadb.end(signal.SIGTERM))
        rabbitmq = rabbit.RabbitMQ(folders[1])
        self._ends.append(rabbitmq.end)
        self.database, self.bus = mariadb.create('catalog'), rabbitmq.url
        schema.initialise(
            self.database,
            chunk_store='file:///none',
            dedupe_scope='repository',
        )
        self._start_conductor(work)

    def _start_conductor(self, work: pathlib.Path) -> None:
        path, log = work / 'conductor.conf', work / 'conductor.log'
        path.write_text(
            f'[DEFAULT]\ntransport_url = {self.bus}\n'
            f'[conductor]\ncatalog = {self.database}\n'
        )
        with log.open('wb') as output:
            conductor = subprocess.Popen(
                [
                    *(sys.executable, '-m', 'nova_lazyimage.cmd.conductor'),
                    *('--config-file', str(path)),
                ],
                cwd=_ROOT,
                stdout=output,
                stderr=output,
            )

        def end() -> None:
            conductor.terminate()
            conductor.wait()

        self._ends.append(end)
        until = time.monotonic() + START_SECONDS_MAX
        while 'Answering' not in log.read_text():
            if conductor.poll() is not None or time.monotonic() > until:
                raise harness.Missing(
                    f'the conductor did not start: {log.read_text()[-2000:]}'
                )
            time.sleep(0.1)

    def close(self) -> None:
        while self._ends:
            self._ends.pop()()
        self._folder.cleanup()


class Caller:
    """Who asks."""

    def __init__(self, name: str, site: Site) -> None:
        self.name = name
        self._site = site
        self._catalog: Any = None
        self._heads: dict[str, int] = {}

    def prepare(self) -> None:
        from lazyblob.catalog import api

        self._site.start()
        self._catalog = self._open()
        self._session = uuid.uuid4().hex
        self._catalog.begin_session('bench', self._session)
        for number in range(AT_ONCE):
            blob = f'{self.name.replace(" ", "-")}-{number}'
            self._catalog.create(
                blob,
                kind=api.Kind.DISK,
                project_id='p',
                chunk_size_bytes=524288,
            )
            self._heads[blob] = 0
            self._publish(blob)

    def _open(self) -> Any:
        from lazyblob.catalog import sql
        from nova_lazyimage.conductor import rpcapi
        from oslo_config import cfg

        if self.name == ITSELF:
            return sql.SqlCatalog(self._site.database)
        cfg.CONF([], project='lazyimage', default_config_files=[])
        return rpcapi.RpcCatalog(transport_url=self._site.bus)

    def has(self, case: str) -> bool:
        return case in _CASES

    def sample(self, case: str) -> harness.Measurements:
        operation, count = _CASES[case]
        act = self._publish if operation == PUBLISH else self._look_up
        blobs = list(self._heads)[:count]

        def run(blob: str) -> None:
            for _ in range(CALLS // count):
                act(blob)

        with concurrent.futures.ThreadPoolExecutor(count) as pool:
            list(pool.map(act, blobs))  # whatever the first call costs
            begun = time.perf_counter()
            list(pool.map(run, blobs))
            seconds = time.perf_counter() - begun
        calls = CALLS // count * count
        if count == 1:
            return {case: seconds / calls * 1000}
        return {case: calls / seconds}

    def cleanup(self) -> None:
        if self._catalog is not None:
            self._catalog.close()
        self._site.close()

    def _look_up(self, blob: str) -> None:
        self._catalog.version(blob)

    def _publish(self, blob: str) -> None:
        parent = self._heads[blob]
        self._catalog.publish(
            blob,
            epoch=1,
            parent=parent,
            commit_id=f'commit-{parent}',
            root=catalogs.ROOT,
            size_bytes=1 << 30,
            session_id=self._session,
            drop_parent=True,
        )
        self._heads[blob] = parent + 1


def contenders(work: pathlib.Path) -> list[Caller]:
    site = Site()
    return [Caller(ITSELF, site), Caller(THROUGH, site)]


BENCH = harness.Bench(
    name='conductor',
    summary='a look-up and a publish in a catalog on MariaDB, by whoever '
    'reaches the database itself, and through a conductor',
    metrics=[
        harness.Metric(case, 'ms')
        if count == 1
        else harness.Metric(case, 'a second', better='higher')
        for case, (_, count) in _CASES.items()
    ],
    baseline=ITSELF,
    contenders=contenders,
    rounds=7,
)
