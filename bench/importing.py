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
"""Storing an image: ``lazyimage import`` beside a copy and a conversion.

Of two images: a sparse one, a part of which are zeros while the rest
compresses to about half, as file systems do; and noise, as of what is
compressed or encrypted already. What an import gives is a durable copy of
which every byte is known by its digest, so the baseline is a conversion to a
new raw file, a sync, and a SHA-256 of the image.
"""

import os
import pathlib
import random
import shutil
import subprocess
import sys
import time

from bench import harness

SIZE_BYTES = int(os.environ.get('LAZYIMAGE_BENCH_MIB', '1024')) << 20
BLOCK_BYTES = 1 << 20
PAGE_BYTES = 4096
KINDS = ('sparse', 'noise')
CONVERT = 'qemu-img convert, sha256'
IMPORT = 'lazyimage import'


def make_image(path: pathlib.Path, *, is_noise: bool) -> None:
    """Two fifths data, in runs, the rest a hole; the same each time."""
    chance = random.Random(20)
    with path.open('wb') as file:
        for _ in range(SIZE_BYTES // BLOCK_BYTES):
            if is_noise:
                file.write(chance.randbytes(BLOCK_BYTES))
            elif chance.random() < 0.4:
                half = chance.randbytes(BLOCK_BYTES // 2)
                # Twice each, near one another: a chunk is less than a block.
                parts = range(0, len(half), PAGE_BYTES)
                file.write(
                    b''.join(half[n : n + PAGE_BYTES] * 2 for n in parts)
                )
            else:
                file.seek(BLOCK_BYTES, os.SEEK_CUR)
        file.truncate(SIZE_BYTES)
        file.flush()
        os.fsync(file.fileno())


class Command:
    """Programs that read an image and write a copy."""

    def __init__(self, work: pathlib.Path, name: str) -> None:
        self.name = name
        self.work = work
        self.folder = work / name.replace(' ', '-')
        self.target = self.folder / 'target'

    def commands(self, image: pathlib.Path) -> list[list[str]]:
        raise NotImplementedError

    def before(self) -> None:
        """Make what the commands write into."""

    def image(self, kind: str) -> pathlib.Path:
        return self.work / f'{kind}.raw'

    def prepare(self) -> None:
        for kind in KINDS:
            image = self.image(kind)
            if not image.exists():
                make_image(image, is_noise=kind == 'noise')

    def call(self, *command: str | pathlib.Path) -> None:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise harness.Missing(
                f'{" ".join(map(str, command))}: {done.stderr[-2000:]}'
            )

    def run(self) -> harness.Measurements:
        found = {}
        for kind in KINDS:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir()
            self.before()
            os.sync()
            start = time.monotonic()
            for command in self.commands(self.image(kind)):
                self.call(*command)
            os.sync()
            found[f'{kind} time'] = time.monotonic() - start
            stored = sum(
                path.stat().st_blocks * 512
                for path in self.folder.rglob('*')
                if path.is_file()
            )
            found[f'{kind} stored'] = stored / (1 << 20)
        return found

    def cleanup(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class Copy(Command):
    def commands(self, image: pathlib.Path) -> list[list[str]]:
        return [['cp', '--sparse=always', str(image), str(self.target)]]


class Convert(Command):
    def commands(self, image: pathlib.Path) -> list[list[str]]:
        target = str(self.target)
        return [
            ['qemu-img', 'convert', '-f', 'raw', '-O', 'raw', str(image)]
            + [target],
            ['sync', target],
            ['sha256sum', str(image)],
        ]


class Import(Command):
    def lazyimage(self, *arguments: str) -> list[str]:
        return [
            sys.executable,
            '-m',
            'nova_lazyimage.cmd.lazyimage',
            '--repository',
            f'file://{self.folder}',
            *arguments,
        ]

    def before(self) -> None:
        self.call(*self.lazyimage('init'))

    def commands(self, image: pathlib.Path) -> list[list[str]]:
        return [self.lazyimage('import', str(image), '--name', 'image')]


BENCH = harness.Bench(
    name='import',
    summary=f'raw images of {SIZE_BYTES >> 20} MiB, two fifths data and all '
    'noise, stored durably and hashed',
    metrics=[
        harness.Metric(f'{kind} {name}', unit)
        for kind in KINDS
        for name, unit in (('time', 's'), ('stored', 'MiB'))
    ],
    baseline=CONVERT,
    contenders=lambda work: [
        Copy(work, 'cp'),
        Convert(work, CONVERT),
        Import(work, IMPORT),
    ],
    goals=[
        harness.Goal(f'{kind} time', IMPORT, at_least=1.0) for kind in KINDS
    ],
)
