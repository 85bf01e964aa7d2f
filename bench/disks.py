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
"""The disks that the comparisons of the data path run fio on."""

import mmap
import os
import pathlib
import shutil
import subprocess
import sys
import time

from bench import fio
from bench import harness

START_SECONDS_MAX = 120.0
STOP_SECONDS_MAX = 30.0


def fill(path: pathlib.Path, size_bytes: int = fio.SIZE_BYTES) -> None:
    """Write every block once, in order, as a guest does.

    Whoever serves the file, its file system then sees the same requests and
    lays the blocks out alike.
    """
    block = mmap.mmap(-1, 1 << 20)
    block.write(os.urandom(len(block)))
    handle = os.open(path, os.O_RDWR | os.O_DIRECT)
    try:
        for offset in range(0, size_bytes, len(block)):
            if os.pwrite(handle, block, offset) != len(block):
                raise harness.Missing(f'a write of {path} was cut short')
        os.fsync(handle)
    finally:
        os.close(handle)


class Raw:
    """One plain file.

    :param empty: a sparse file of which nothing was ever written
    """

    name = 'raw file'

    def __init__(
        self,
        work: pathlib.Path,
        loads: dict[str, fio.Load],
        *,
        size_bytes: int = fio.SIZE_BYTES,
        empty: bool = False,
    ) -> None:
        self.loads = loads
        self.size_bytes = size_bytes
        self.empty = empty
        self.folder = work / self.name.replace(' ', '-')
        self.file = self.folder / 'file'

    def path_for(self, load: fio.Load) -> pathlib.Path:
        return self.path

    def make(self) -> None:
        fio.need('fio')
        self.folder.mkdir()
        self.file.touch()
        os.truncate(self.file, self.size_bytes)

    def warm(self) -> None:
        """Bring the disk into the state that is measured."""
        if not self.empty:
            fill(self.path, self.size_bytes)

    @property
    def path(self) -> pathlib.Path:
        return self.file

    def prepare(self) -> None:
        self.make()
        self.warm()

    def has(self, case: str) -> bool:
        return case in self.loads

    def server(self) -> int | None:
        return None

    def sample(self, case: str) -> harness.Measurements:
        load = self.loads[case]
        path = self.path_for(load)
        return load.run(path, self.size_bytes, server=self.server())

    def cleanup(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class Served(Raw):
    """A disk that a process serves through FUSE."""

    def __init__(
        self,
        work: pathlib.Path,
        loads: dict[str, fio.Load],
        *,
        size_bytes: int = fio.SIZE_BYTES,
        empty: bool = False,
    ) -> None:
        super().__init__(work, loads, size_bytes=size_bytes, empty=empty)
        self.mount = self.folder / 'mnt'
        self.process: subprocess.Popen[str] | None = None

    def is_up(self) -> bool:
        raise NotImplementedError

    def server(self) -> int | None:
        assert self.process is not None
        return self.process.pid

    def start(self, *command: object) -> None:
        fio.need('fio')
        fio.need('fusermount3')
        log = (self.folder / 'log').open('w')
        with log:
            self.process = subprocess.Popen(
                list(map(str, command)),
                cwd=pathlib.Path(__file__).parents[1],
                stdout=log,
                stderr=log,
                text=True,
            )
        deadline = time.monotonic() + START_SECONDS_MAX
        while not self.is_up():
            if self.process.poll() is not None:
                raise harness.Missing(
                    f'the server of "{self.name}" ended: '
                    + (self.folder / 'log').read_text()[-2000:]
                )
            if time.monotonic() > deadline:
                raise harness.Missing(f'"{self.name}" did not come up')
            time.sleep(0.05)

    def serve(self, *arguments: object) -> None:
        """Start a server of ours (``bench.serving``)."""
        self.start(sys.executable, '-m', 'bench.serving', *arguments)

    def cleanup(self) -> None:
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        # A dead mount cannot be looked at, os.path.ismount() denies it.
        mounts = pathlib.Path('/proc/self/mounts').read_text()
        if f' {self.mount} ' in mounts:
            subprocess.run(['fusermount3', '-u', '-z', self.mount])
        super().cleanup()


class Passthrough(Served):
    """Our FUSE layer over one plain file, no engine behind it."""

    name = 'pass-through'

    @property
    def path(self) -> pathlib.Path:
        return self.mount / 'passthrough' / 'file'

    def is_up(self) -> bool:
        return self.path.exists()

    def prepare(self) -> None:
        self.make()
        self.mount.mkdir()
        self.serve('passthrough', self.mount, self.file)
        self.warm()


class QemuStorageDaemon(Served):
    """QEMU's FUSE export of a raw file."""

    name = 'qemu-storage-daemon'

    @property
    def path(self) -> pathlib.Path:
        return self.mount

    def is_up(self) -> bool:
        mounts = pathlib.Path('/proc/self/mounts').read_text()
        return f' {self.mount} ' in mounts

    def prepare(self) -> None:
        fio.need('qemu-storage-daemon')
        self.make()
        self.mount.touch()  # it mounts on a file
        self.start(
            'qemu-storage-daemon',
            '--blockdev',
            f'driver=file,node-name=disk,filename={self.file},'
            'cache.direct=on,aio=native',
            '--export',
            f'type=fuse,id=export,node-name=disk,mountpoint={self.mount},'
            'writable=on',
        )
        self.warm()


class Mirror(Served):
    """A mirror of the engine: one disk to read, one to write.

    What is written is in the delta from then on, and no read of it would use
    the cache.
    """

    kind = 'mirror'

    def path_for(self, load: fio.Load) -> pathlib.Path:
        disk = 'read' if load.verb == 'read' else 'write'
        return self.mount / 'bench' / disk

    def is_up(self) -> bool:
        return 'ready' in (self.folder / 'log').read_text()

    def prepare(self) -> None:
        self.folder.mkdir()
        self.mount.mkdir()
        state = self.folder / 'state'
        self.serve(self.kind, self.mount, state, self.size_bytes)
        self.warm()


class Delta(Mirror):
    """... whose guest wrote every block."""

    name = 'mirror in delta'

    def warm(self) -> None:
        for disk in ('read', 'write'):
            fill(self.mount / 'bench' / disk, self.size_bytes)


class Cache(Mirror):
    """... whose chunks are all in the chunk cache; only to be read."""

    name = 'mirror in cache'

    def has(self, case: str) -> bool:
        return super().has(case) and self.loads[case].verb == 'read'

    def warm(self) -> None:
        with (self.mount / 'bench' / 'read').open('rb') as file:
            while file.read(1 << 20):
                pass
