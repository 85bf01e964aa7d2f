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

The image is sparse: a part of it are zeros, the rest compresses to about
half, as file systems do.
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


def make_image(path: pathlib.Path) -> None:
    """Two fifths data, in runs, the rest a hole; the same each time."""
    chance = random.Random(20)
    with path.open('wb') as file:
        for _ in range(SIZE_BYTES // BLOCK_BYTES):
            if chance.random() < 0.4:
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
    """A program that reads the image and writes a copy."""

    def __init__(self, work: pathlib.Path, name: str) -> None:
        self.name = name
        self.image = work / 'image.raw'
        self.folder = work / name.replace(' ', '-')
        self.target = self.folder / 'target'

    def command(self) -> list[str]:
        raise NotImplementedError

    def before(self) -> None:
        """Make what the command writes into."""

    def prepare(self) -> None:
        if not self.image.exists():
            make_image(self.image)

    def call(self, *command: str | pathlib.Path) -> None:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise harness.Missing(
                f'{" ".join(map(str, command))}: {done.stderr[-2000:]}'
            )

    def run(self) -> harness.Measurements:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        self.before()
        start = time.monotonic()
        self.call(*self.command())
        os.sync()
        seconds = time.monotonic() - start
        stored = sum(
            path.stat().st_blocks * 512
            for path in self.folder.rglob('*')
            if path.is_file()
        )
        return {'time': seconds, 'stored': stored / (1 << 20)}

    def cleanup(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class Copy(Command):
    def command(self) -> list[str]:
        return ['cp', '--sparse=always', str(self.image), str(self.target)]


class Convert(Command):
    def command(self) -> list[str]:
        return ['qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2'] + [
            str(self.image),
            str(self.target),
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

    def command(self) -> list[str]:
        return self.lazyimage('import', str(self.image), '--name', 'image')


BENCH = harness.Bench(
    name='import',
    summary=f'a raw image of {SIZE_BYTES >> 20} MiB, two fifths data, stored '
    'durably',
    metrics=[harness.Metric('time', 's'), harness.Metric('stored', 'MiB')],
    baseline='qemu-img convert',
    contenders=lambda work: [
        Copy(work, 'cp'),
        Convert(work, 'qemu-img convert'),
        Import(work, 'lazyimage import'),
    ],
)
