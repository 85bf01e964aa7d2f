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
"""Random operations on real disks never disagree with a model in memory.

The model is one bytearray a disk. Operations come in any order: reads,
writes, discards, zeroing, flushes, growth, COMMITs that go on while others
happen, attaching from their images, releases, stops and ``kill -9`` of the
agent. ``LAZYIMAGE_SOAK_SECONDS`` makes it longer; the seed is printed.
"""

import ctypes
import os
import time
import uuid

import pytest

from nova_lazyimage.agent import client

CHUNK_BYTES = 256 * 1024
SIZE_BYTES = 3 * 1024 * 1024 + 5 * 512
SIZE_BYTES_MAX = 6 * 1024 * 1024
SECONDS = float(os.environ.get('LAZYIMAGE_SOAK_SECONDS', '25'))
DISKS_MAX = 3

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 0x10
_LIBC = ctypes.CDLL(None, use_errno=True)


def fallocate(descriptor, mode, offset, length):
    done = _LIBC.fallocate(
        descriptor,
        mode,
        ctypes.c_longlong(offset),
        ctypes.c_longlong(length),
    )
    if done:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Disk:
    """A disk and what it must read as."""

    def __init__(self, key, mirror, data):
        self.key = key
        self.path = mirror['path']
        self.data = bytearray(data)
        self.commit = None  # (commit id, image id, the disk at its freeze)


class Soak:
    """One run."""

    def __init__(self, site, rng, noise):
        self.site = site
        self.rng = rng
        self.images = {}
        self.disks = []
        self.counts = {}
        data = noise(SIZE_BYTES)
        self.images[site.image(data)] = data
        self.agent = site.start()

    def step(self):
        operations = {
            self.read: 20,
            self.write: 30,
            self.discard: 6,
            self.zero: 4,
            self.flush: 5,
            self.grow: 1,
            self.begin_commit: 4,
            self.end_commit: 4,
            self.attach: 2,
            self.release: 1,
            self.kill: 1,
            self.stop: 0.3,
        }
        operation = self.rng.choices(
            list(operations), list(operations.values())
        )[0]
        if not self.disks:
            operation = self.attach
        name = operation.__name__
        self.counts[name] = self.counts.get(name, 0) + 1
        operation()

    def disk(self):
        return self.rng.choice(self.disks)

    def span(self, disk, unit=512):
        """Some bytes of a disk, often few, sometimes many."""
        size = len(disk.data)
        length = self.rng.choice((512, 4096, 8192, 65536, CHUNK_BYTES + 512))
        offset = self.rng.randrange(0, size, unit)
        return offset, min(length, size - offset)

    def read(self):
        disk = self.disk()
        offset, length = self.span(disk)
        with open(disk.path, 'rb', buffering=0) as file:
            found = os.pread(file.fileno(), length, offset)
        assert found == disk.data[offset : offset + length], (
            f'{disk.path} differs at {offset}, {length} bytes'
        )

    def write(self):
        disk = self.disk()
        offset, length = self.span(disk)
        data = self.rng.randbytes(length)
        if self.rng.random() < 0.1:
            data = bytes(length)
        with open(disk.path, 'r+b', buffering=0) as file:
            assert os.pwrite(file.fileno(), data, offset) == length
        disk.data[offset : offset + length] = data

    def discard(self):
        self._punch(KEEP_SIZE | PUNCH_HOLE)

    def zero(self):
        self._punch(KEEP_SIZE | ZERO_RANGE)

    def _punch(self, mode):
        disk = self.disk()
        offset, length = self.span(disk)
        with open(disk.path, 'r+b', buffering=0) as file:
            fallocate(file.fileno(), mode, offset, length)
        disk.data[offset : offset + length] = bytes(length)

    def flush(self):
        with open(self.disk().path, 'r+b', buffering=0) as file:
            os.fsync(file.fileno())

    def grow(self):
        disk = self.disk()
        more = self.rng.choice((512, 4096, CHUNK_BYTES))
        if len(disk.data) + more > SIZE_BYTES_MAX:
            return
        disk.data.extend(bytes(more))
        self.agent.grow(*disk.key, len(disk.data))
        assert os.stat(disk.path).st_size == len(disk.data)

    def attach(self):
        if len(self.disks) >= DISKS_MAX:
            return
        image = self.rng.choice(list(self.images))
        key = str(uuid.UUID(int=self.rng.getrandbits(128))), 'disk'
        mirror = self.agent.attach(*key, clone_blob=image)
        self.disks.append(Disk(key, mirror, self.images[image]))

    def release(self):
        disk = self.disk()
        self.agent.release(*disk.key)
        self.disks.remove(disk)
        assert not os.path.exists(disk.path)

    def begin_commit(self):
        disk = self.disk()
        if disk.commit is not None:
            return
        ids = [str(uuid.UUID(int=self.rng.getrandbits(128))) for _ in range(2)]
        self.agent.commit(*disk.key, commit_id=ids[0], image_id=ids[1])
        disk.commit = (*ids, bytes(disk.data))

    def end_commit(self):
        for disk in self.disks:
            if disk.commit is None:
                continue
            commit_id, image, data = disk.commit
            disk.commit = None
            self.agent.wait_for_commit(*disk.key, commit_id, 60)
            self.check_image(image, data)
            return

    def check_image(self, image, data):
        assert self.site.read(image) == data, f'image {image} differs'
        self.images[image] = data

    def kill(self):
        self._again(self.site.kill)

    def stop(self):
        self._again(self.site.stop)

    def _again(self, end):
        end()
        self.agent = self.site.start()
        for disk in self.disks:
            if disk.commit is None:
                continue
            commit_id, image, data = disk.commit
            disk.commit = None
            # It failed, or it had been published: never half of it.
            try:
                self.agent.wait_for_commit(*disk.key, commit_id, 60)
            except client.CommitFailed:
                assert image not in self.site.blobs()
            else:
                self.check_image(image, data)

    def check_all(self):
        for disk in self.disks:
            with open(disk.path, 'rb') as file:
                assert file.read() == disk.data, f'{disk.path} differs'


@pytest.mark.soak
@pytest.mark.timeout(SECONDS * 4 + 120)
def test_random_operations_never_disagree_with_the_model(site, rng, noise):
    soak = Soak(site, rng, noise)
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        soak.step()
    soak.check_all()
    soak.kill()
    soak.check_all()
    print('operations:', soak.counts)
    assert soak.counts['write'] > 20, 'too little was done to prove a thing'
    for disk in list(soak.disks):
        soak.agent.release(*disk.key)
    assert site.left() == []
    assert site.blobs() >= set(soak.images)
