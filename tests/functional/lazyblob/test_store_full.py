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

import random

import dying
import operations
import places
import pytest

from lazyblob import exceptions
from lazyblob import repository

CHUNK = 4096
DATA = random.Random(1).randbytes(64 * CHUNK)


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
        places.leave_room(small, ballast, room * 1024)
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


@pytest.mark.expect_logs('was damaged in')
@pytest.mark.parametrize('name', ['Again', 'Commit', 'Snapshot', 'Larger'])
def test_what_writes_into_a_full_store_is_refused_and_works_with_room(
    small, tmp_path, request, name
):
    """Whatever it had come to: with no room, and with a little."""
    place = dying.Place(
        (small / 'chunks').as_uri(),
        f'sqlite:///{tmp_path}/catalog.sqlite',
        str(tmp_path),
    )
    repo = place.initialise()
    request.addfinalizer(repo.close)
    world = operations.Opened(repo)
    ballast = small / 'ballast'
    refused = done = 0
    for room in range(0, 40, 4):
        operation = operations.OPERATIONS[name]()
        operation.prepare(repo, key := f'k{room}')
        places.leave_room(small, ballast, room * 1024)
        try:
            answer = operation.run(world, key)
            done += 1
        except exceptions.StoreFull as exc:
            refused += 1
            assert 'make room' in str(exc)
            operations.audit(repo, operation.damaged)
            ballast.unlink()
            answer = operation.run(world, key)
        ballast.unlink(missing_ok=True)
        operation.check(repo, key, answer)
        operations.audit(repo)
    assert refused and done, 'all or none were refused: this proves nothing'


def test_an_export_to_a_full_disk_is_refused_and_leaves_nothing(
    small, tmp_path, request
):
    place = dying.Place(
        (tmp_path / 'chunks').as_uri(),
        f'sqlite:///{tmp_path}/catalog.sqlite',
        str(small),
    )
    repo = place.initialise()
    request.addfinalizer(repo.close)
    repo.create([DATA], blob_id='image', chunk_size_bytes=CHUNK)
    target = small / 'image.raw'
    target.write_bytes(b'as it was')
    ballast = small / 'ballast'
    for room in (0, 60, 200):
        places.leave_room(small, ballast, room * 1024)
        with pytest.raises(exceptions.InvalidConfiguration, match='space'):
            repo.export('image', None, target)
        assert target.read_bytes() == b'as it was'
        ballast.unlink()
        assert [path.name for path in small.iterdir()] == ['image.raw']
    repo.export('image', None, target)
    assert target.read_bytes() == DATA


def names(repo, version):
    manifest = repo.manifest(version.root)
    encoded = manifest.encode(repository.digest.keys('repository'))
    return {
        encoded.root,
        *(name for name, _ in encoded.nodes),
        *(name for _, name in manifest.chunks()),
    }
