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
"""Glance's uploads and downloads through its file store and through ours.

The drivers themselves, each in a process of its own for each case
(:mod:`bench.storing`), with the images of the import: one of file systems'
kind with holes, one all noise. The file store leaves what it wrote to the
page cache; ours has synced it when it answers, and so has ``file and sync``.

A download is *warm*, out of the page cache, or *cold*, from the disk.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

from bench import harness
from bench import importing

UPLOADS = 4
MEMORY_MIB_MAX = 200
FILE, SYNCED, BLOB = 'file store', 'file store, then sync', 'blob store'
MEMORY = f'memory of {UPLOADS} uploads'
_ACTIONS = ('upload', 'download warm', 'download cold')


class Store:
    """One of the stores.

    :param kind: as ``enabled_backends`` has it
    :param syncs: whether its upload ends with a sync of what it wrote
    """

    def __init__(
        self, work: pathlib.Path, name: str, kind: str, *, syncs: bool = False
    ) -> None:
        self.name = name
        self._kind = kind
        self._syncs = syncs
        self._work = work
        self._folder = work / name.replace(' ', '-').replace(',', '')

    def prepare(self) -> None:
        for kind in importing.KINDS:
            if not self._image(kind).exists():
                importing.make_image(
                    self._image(kind), is_noise=kind == 'noise'
                )

    def has(self, case: str) -> bool:
        return not self._syncs or case.endswith('upload')

    def sample(self, case: str) -> harness.Measurements:
        if case == MEMORY:
            self._empty()
            found = self._run('upload', 'sparse', UPLOADS)
            return {case: found['peak_kib'] / 1024}
        kind, action = case.split(' ', 1)
        self._empty()
        found = self._run('upload', kind, 1)
        if action != 'upload':
            os.sync()
            if action == 'download cold':
                self._forget()
            found = self._run('download', kind, 1)
        return {
            case: found['seconds'],
            harness.CPU: found[harness.CPU],
        }

    def cleanup(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _image(self, kind: str) -> pathlib.Path:
        return self._work / f'{kind}.raw'

    def _empty(self) -> None:
        """A store without an image; nothing waits for the disk."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        if self._kind == 'file':
            (self._folder / 'images').mkdir()
        else:
            from lazyblob import repository

            repository.initialise(
                *repository.urls_of(self._folder.as_uri())
            ).close()
        os.sync()

    def _forget(self) -> None:
        for path in self._folder.rglob('*'):
            if path.is_file():
                handle = os.open(path, os.O_RDONLY)
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(handle)

    def _run(self, action: str, kind: str, count: int) -> dict[str, float]:
        done = subprocess.run(
            [
                *(sys.executable, '-m', 'bench.storing', self._kind),
                *(str(self._folder), action, str(self._image(kind))),
                *(str(count), *(['sync'] if self._syncs else [])),
            ],
            cwd=pathlib.Path(__file__).parents[1],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise harness.Missing(f'{self.name}: {done.stderr[-2000:]}')
        found: dict[str, float] = json.loads(done.stdout)
        return found


_CASES = [
    f'{kind} {action}' for kind in importing.KINDS for action in _ACTIONS
]
BENCH = harness.Bench(
    name='glance',
    summary=f'images of {importing.SIZE_BYTES >> 20} MiB, two fifths data '
    'and all noise, through glance_store\'s drivers',
    metrics=[
        *(harness.Metric(case, 's') for case in _CASES),
        harness.Metric(MEMORY, 'MiB'),
    ],
    baseline=FILE,
    contenders=lambda work: [
        Store(work, FILE, 'file'),
        Store(work, SYNCED, 'file', syncs=True),
        Store(work, BLOB, 'blob'),
    ],
    goals=[
        *(harness.Goal(case, BLOB, at_least=1.0) for case in _CASES),
        harness.Goal(MEMORY, BLOB, at_most=MEMORY_MIB_MAX),
    ],
)
