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
"""The host's chunk cache and its store, through agent, mount and files."""

import collections
import errno
import json
import os
import pathlib
import subprocess
import sys
import threading
import uuid

import pytest
from tests.functional.waits import wait_for

from nova_lazyimage.agent import client

MIB = 1024 * 1024
CHUNK_BYTES = 256 * 1024


def metric(site, name):
    for line in site.client.metrics().splitlines():
        if line.startswith(f'{name} '):
            return float(line.split()[-1])
    raise AssertionError(f'no metric {name}')


def read(path, offset, length):
    with open(path, 'rb', buffering=0) as file:
        return os.pread(file.fileno(), length, offset)


def digest_of(site, blob_id, chunk):
    version = site.repository.catalog.version(blob_id, None)
    return site.repository.manifest(version.root).get(chunk)


def object_of(site, digest):
    folder = pathlib.Path(site.folder, 'repository', 'chunks')
    return folder / digest.hex()[:2] / digest.hex()


def attach(site, image):
    return site.client.attach(str(uuid.uuid4()), 'disk', clone_blob=image)[
        'path'
    ]


def test_thirty_disks_of_one_image_fetch_each_chunk_once(site, noise):
    data = noise(4 * MIB)
    image = site.image(data)
    site.start()
    paths = [attach(site, image) for _ in range(30)]
    site.tell('count-gets')
    together = threading.Barrier(len(paths))
    wrong = []

    def boot(path):
        together.wait()
        for offset in range(0, len(data), CHUNK_BYTES):
            found = read(path, offset + 512, 8192)
            if found != data[offset + 512 :][:8192]:
                wrong.append((path, offset))

    threads = [threading.Thread(target=boot, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    lines = (site.faults / 'count-gets').read_text().split()
    counts = collections.Counter(lines)
    # Every fourth chunk is a hole.
    assert len(counts) == 4 * MIB // CHUNK_BYTES * 3 // 4
    assert set(counts.values()) == {1}
    cache = site.client.status()['cache']
    assert cache['bytes'] == cache['pinned_bytes'] == len(counts) * CHUNK_BYTES
    assert cache['filled_total'] == len(counts)
    assert cache['hits_total'] > 0


@pytest.mark.parametrize(
    'fault', ['flipped', 'truncated', 'endless', 'another', 'gone']
)
def test_a_chunk_that_is_wrong_in_the_store_is_an_error_until_repaired(
    site, noise, fault
):
    data = noise(2 * MIB)
    image = site.image(data)
    site.start()
    path = attach(site, image)
    digest = digest_of(site, image, 2)
    place = object_of(site, digest)
    right = place.read_bytes()
    place.chmod(0o600)
    if fault == 'flipped':
        middle = len(right) // 2
        wrong = bytes([right[middle] ^ 1])
        place.write_bytes(right[:middle] + wrong + right[middle + 1 :])
    elif fault == 'truncated':
        place.write_bytes(right[:-5000])
    elif fault == 'endless':
        os.truncate(place, 1 << 40)
    elif fault == 'another':
        other = object_of(site, digest_of(site, image, 3))
        place.write_bytes(other.read_bytes())
    else:
        place.unlink()
    with pytest.raises(OSError) as caught:
        read(path, 2 * CHUNK_BYTES + 4096, 4096)
    assert caught.value.errno == errno.EIO
    # Its neighbours are served.
    for chunk in (1, 3):
        found = read(path, chunk * CHUNK_BYTES, 4096)
        assert found == data[chunk * CHUNK_BYTES :][:4096]
    # Twice for each time that the kernel asks.
    refused = metric(site, 'lazyimage_chunks_refused_total{source="store"}')
    kind = 'missing' if fault == 'gone' else 'corrupt'
    name = f'lazyimage_fetch_failures_total{{kind="{kind}",tier="store"}}'
    assert metric(site, name) in (2, 4)
    assert refused == (0 if fault == 'gone' else metric(site, name))
    wait_for(
        lambda: (
            f'Alarm: what=a chunk does not exist or every copy is bad; '
            f'its readers get EIO digest={digest.hex()}' in site.log()
        ),
        'the alarm',
    )
    if refused:
        assert f'source=store digest={digest.hex()}' in site.log()
    # And listed, for writers and for repair.
    (listed,) = wait_for(site.repository.catalog.bad_digests, 'the report')
    assert listed.digest == digest.hex()
    place.write_bytes(right)
    found = read(path, 2 * CHUNK_BYTES, CHUNK_BYTES)
    assert found == data[2 * CHUNK_BYTES : 3 * CHUNK_BYTES]


def test_a_chunk_that_rots_in_the_cache_is_fetched_again(site, noise):
    data = noise(2 * MIB)
    image = site.image(data)
    elsewhere = site.folder / 'elsewhere'
    config = site.folder / 'cache.conf'
    config.write_text(f'[agent]\ncache_directory = {elsewhere}\n')
    site.arguments += ['--config-file', str(config)]
    site.start()
    path = attach(site, image)
    assert read(path, 0, 2 * MIB) == data
    site.kill()
    with open(elsewhere / f'slab-{CHUNK_BYTES}', 'r+b') as slab:
        at = slab.read().index(data[CHUNK_BYTES : CHUNK_BYTES + 64])
        slab.seek(at + 70_000)
        slab.write(b'rot')
    site.tell('count-gets')
    site.start()
    assert site.client.status()['cache']['directory'] == str(elsewhere)
    assert read(path, 0, 2 * MIB) == data
    digest = digest_of(site, image, 1).hex()
    assert (site.faults / 'count-gets').read_text().split() == [digest]
    cache = site.client.status()['cache']
    assert (cache['refused_total'], cache['checked_total']) == (1, 5)
    wait_for(
        lambda: f'source=cache digest={digest}' in site.log(), 'the alarm'
    )


def test_a_store_is_repaired_from_the_cache(site, noise):
    data = noise(2 * MIB)
    image = site.image(data)
    site.start()
    path = attach(site, image)
    # Chunks 0 and 4 are holes; what no guest has read is in no cache.
    assert read(path, 0, MIB) == data[:MIB]
    lost, damaged, nowhere = (digest_of(site, image, at) for at in (1, 2, 5))
    object_of(site, lost).unlink()
    place = object_of(site, damaged)
    place.chmod(0o600)
    place.write_bytes(place.read_bytes()[:-1] + b'?')
    object_of(site, nowhere).unlink()
    found = site.client.chunk(lost.hex(), CHUNK_BYTES)
    assert found == data[CHUNK_BYTES : 2 * CHUNK_BYTES]
    with pytest.raises(client.NotFound):
        site.client.chunk(nowhere.hex(), CHUNK_BYTES)
    with pytest.raises(client.NotFound):
        site.client.chunk(lost.hex(), 2 * CHUNK_BYTES)
    for wrong in ('x', lost.hex().upper(), '../status'):
        with pytest.raises(client.BadRequest):
            site.client.chunk(wrong, CHUNK_BYTES)

    def repair(*more):
        done = subprocess.run(
            [
                *(sys.executable, '-m', 'nova_lazyimage.cmd.lazyimage'),
                *('--repository', site.url, 'repair', '--read-data'),
                *('--from-cache', site.client.socket_path, '--json', *more),
            ],
            env=site.environment(),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1, done.stderr
        return json.loads(done.stdout)

    shown = repair('--dry-run')
    assert not object_of(site, lost).exists()
    told = repair()
    expected = sorted([lost.hex(), damaged.hex()])
    assert sorted(shown['repairable']) == sorted(told['repaired']) == expected
    # Of the image, and of the disk, which is a clone of it.
    (disk,) = (mirror['blob_id'] for mirror in site.client.mirrors())
    assert {row['id'] for row in told['lost']} == {image, disk}
    for row in told['lost']:
        assert (row['version'], row['digest']) == (1, nowhere.hex())
        assert row['offset'] == 5 * CHUNK_BYTES
        assert row['length_bytes'] == CHUNK_BYTES
    assert set(site.repository.verify().faults) == {nowhere}
    listed = site.repository.catalog.bad_digests()
    assert [row.digest for row in listed] == [nowhere.hex()]
