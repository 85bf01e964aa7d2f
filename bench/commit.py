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
"""What a guest that writes at full speed keeps while its disk is committed.

A real agent with the default bounds of COMMIT, a repository on the same file
system. One COMMIT follows the other as long as fio runs, each with what the
guest has written since and a few hundred megabytes more.
"""

import pathlib
import shutil
import subprocess
import sys
import threading
import time
import uuid

from bench import fio
from bench import harness

LOADS = fio.by_name(
    [
        fio.Load('write', True, '4k', 32),
        fio.Load('write', False, '1M', 4),
        fio.Load('flush', True, '4k', 1),
        fio.Load('read', True, '4k', 32),
    ]
)
INSTANCE = str(uuid.UUID(int=1))
COMMIT_SECONDS_MAX = 600.0


class Alone:
    """No COMMIT."""

    name = 'no COMMIT'
    commits = False

    def __init__(self, work: pathlib.Path) -> None:
        self.folder = work / self.name.replace(' ', '-')
        self.agent: subprocess.Popen[bytes] | None = None
        self.path = pathlib.Path()

    def prepare(self) -> None:
        from lazyblob import repository
        from nova_lazyimage.agent import client

        fio.need('fio')
        self.folder.mkdir()
        url = (self.folder / 'repository').as_uri()
        made = repository.initialise(*repository.urls_of(url))
        made.create([bytes(1 << 20)], blob_id='image', project_id='bench')
        state = self.folder / 'state'
        with (self.folder / 'log').open('wb') as log:
            self.agent = subprocess.Popen(
                [
                    sys.executable,
                    '-m',
                    'nova_lazyimage.cmd.agent',
                    '--repository',
                    url,
                    '--state',
                    str(state),
                ],
                stdout=log,
                stderr=log,
            )
        self.client = client.AgentClient(str(state / 'run' / 'agent.sock'))
        until = time.monotonic() + 30
        while True:
            try:
                if self.client.status()['ready']:
                    break
            except client.AgentUnavailable:
                if time.monotonic() > until:
                    raise harness.Missing(
                        (self.folder / 'log').read_text()[-2000:]
                    ) from None
            time.sleep(0.1)
        mirror = self.client.attach(
            INSTANCE, 'disk', clone_blob='image', size_bytes=fio.SIZE_BYTES
        )
        self.path = pathlib.Path(mirror['path'])
        self.fill()

    def fill(self) -> None:
        """Every block anew, and nothing of it compresses."""
        subprocess.run(
            [
                'fio',
                '--name=fill',
                f'--filename={self.path}',
                f'--size={fio.SIZE_BYTES}',
                '--rw=write',
                '--bs=1M',
                '--direct=1',
                '--fallocate=none',
                '--refill_buffers',
            ],
            stdout=subprocess.DEVNULL,
            check=True,
        )

    def run(self) -> harness.Measurements:
        assert self.agent is not None
        found: harness.Measurements = {}
        stopping = threading.Event()
        if self.commits:
            self.fill()
            thread = threading.Thread(target=self.commit, args=(stopping,))
            thread.start()
            time.sleep(0.3)
        try:
            for load in LOADS.values():
                found |= load.run(self.path, server=self.agent.pid)
        finally:
            stopping.set()
            if self.commits:
                thread.join()
        found['COMMIT MiB/s'] = self.speed if self.commits else 0.0
        return found

    speed = 0.0

    def commit(self, stopping: threading.Event) -> None:
        """One after the other; how fast they went through dirty chunks."""
        begun, done = time.monotonic(), 0
        while not stopping.is_set():
            commit_id = str(uuid.uuid4())
            self.client.commit(INSTANCE, 'disk', commit_id=commit_id)
            done += self.client.wait_for_commit(
                INSTANCE, 'disk', commit_id, COMMIT_SECONDS_MAX
            )['total_bytes']
        self.speed = done / (time.monotonic() - begun) / (1 << 20)

    def cleanup(self) -> None:
        if self.agent is not None:
            self.client.release_all(INSTANCE)
            self.agent.terminate()
            self.agent.wait(60)
        shutil.rmtree(self.folder, ignore_errors=True)


class Committed(Alone):
    """With the default bounds."""

    name = 'COMMIT'
    commits = True


BENCH = harness.Bench(
    name='commit',
    summary=f'a guest on {fio.SIZE_BYTES >> 20} MiB beside COMMITs with the '
    f'default bounds, {fio.SECONDS:g} s a case',
    metrics=[
        *(harness.Metric(name, 'IOPS', 'higher') for name in LOADS),
        harness.Metric('COMMIT MiB/s', 'MiB/s', 'higher'),
    ],
    goals=[harness.Goal(name, Committed.name, 0.5) for name in LOADS],
    baseline=Alone.name,
    contenders=lambda work: [Alone(work), Committed(work)],
)
