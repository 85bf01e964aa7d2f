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
"""A real file system that is full, at many fills.

Whatever the store could still take, an upload that does not fit is refused
whole, and the same upload succeeds once there is room.
"""

import os
import random
import subprocess

import pytest

from lazyblob import exceptions
from lazyblob import repository

CHUNK = 4096
DATA = random.Random(1).randbytes(64 * CHUNK)


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


def test_a_full_store_refuses_the_upload_and_nothing_else(
    small, tmp_path, request
):
    urls = (
        (small / 'chunks').as_uri(),
        f'sqlite:///{tmp_path}/catalog.sqlite',
    )
    repo = repository.initialise(*urls)
    request.addfinalizer(repo.close)
    kept = repo.create([b'kept' * 5000], blob_id='kept')
    ballast = small / 'ballast'
    refused = 0
    for room in range(0, 700, 50):
        with open(ballast, 'wb') as file:
            os.posix_fallocate(file.fileno(), 0, free(small) - room * 1024)
        data = random.Random(room).randbytes(32) + DATA
        try:
            repo.create([data], blob_id=f'b{room}', chunk_size_bytes=CHUNK)
        except exceptions.StoreFull as exc:
            refused += 1
            assert 'make room' in str(exc)
            assert len(repo.catalog.list_blobs()) == 1
        else:
            repo.delete(f'b{room}')
        assert repo.verify(kept.blob_id).is_sound
        ballast.unlink()
        again = repo.create(
            [data], blob_id=f'again{room}', chunk_size_bytes=CHUNK
        )
        assert b''.join(repo.open(again.blob_id).stream()) == data
        repo.delete(again.blob_id)
        for name, _size in list(repo.store.list()):
            if name not in names(repo, kept):
                repo.store.delete(name)
    assert 3 < refused < 14, 'all or none were refused: this proves nothing'


def free(path):
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def names(repo, version):
    manifest = repo.manifest(version.root)
    encoded = manifest.encode(repository.digest.keys('repository'))
    return {
        encoded.root,
        *(name for name, _ in encoded.nodes),
        *(name for _, name in manifest.chunks()),
    }
