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
"""Long, random, repeatable use of a disk's file (see ``exerciser.py``).

"make soak" makes each run as long as it is asked to.
"""

import subprocess

import pytest

from tests.functional.mirror import exerciser

CHUNK_BYTES = 256 << 10
SIZES = {
    'whole chunks': 4 * CHUNK_BYTES,
    'whole sectors': 3 * CHUNK_BYTES + 5 * 512,
    'any bytes': 3 * CHUNK_BYTES - 4097,
    'a chunk and a byte': CHUNK_BYTES + 1,
    'less than a block': 1000,
}


@pytest.fixture
def exercise(engine, rng):
    """An exerciser of a disk of this size, its base half holes."""
    made = []

    def make(size):
        parts = [
            rng.randbytes(CHUNK_BYTES) if at % 2 == 0 else bytes(CHUNK_BYTES)
            for at in range(-(-size // CHUNK_BYTES))
        ]
        content = b''.join(parts)[:size]
        path = engine.attach(content)
        made.append(exerciser.Exerciser(engine, path, content, rng))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.soak
@pytest.mark.parametrize('size', SIZES.values(), ids=SIZES.keys())
def test_a_disk_of_any_size_is_an_array_of_bytes(exercise, tmp_path, size):
    disk = exercise(size)
    for _ in exerciser.rounds():
        disk.run(600, exerciser.GUEST)
        disk.compare(tmp_path / 'model')
        assert disk.done['write_direct'] and disk.done['punch']


@pytest.mark.soak
@pytest.mark.parametrize('size', SIZES.values(), ids=SIZES.keys())
def test_so_it_is_while_it_grows_and_commits_and_servers_come_and_go(
    exercise, tmp_path, size
):
    disk = exercise(size)
    for _ in exerciser.rounds():
        disk.run(250, exerciser.GUEST | exerciser.HOST)
        disk.commit()
        disk.compare(tmp_path / 'model')
        disk.run(50, exerciser.GUEST)
        disk.freeze()
        disk.run(50, exerciser.GUEST)
        disk.restart()
    assert disk.done['upload'] and disk.done['frozen']


@pytest.mark.soak
@pytest.mark.parametrize('depth', [1, 32])
@pytest.mark.parametrize('ioengine', ['libaio', 'io_uring', 'psync'])
def test_fio_finds_what_it_wrote_in_pieces_of_any_size(
    engine, rng, tmp_path, ioengine, depth
):
    path = engine.attach(rng.randbytes(32 * CHUNK_BYTES))
    # Not fio's loops: it fails with randrw and them on a plain file too.
    ways = ('randwrite', 'randrw')
    for rw in (rw for _ in exerciser.rounds() for rw in ways):
        command = [
            'fio', '--name=verify', f'--filename={path}', f'--rw={rw}',
            f'--direct={int(ioengine != "psync")}', '--size=8m',
            f'--ioengine={ioengine}', f'--iodepth={depth}',
            '--bssplit=512/30:1k/10:4k/30:20k/10:64k/10:1m/10',
            '--blockalign=512', '--verify=crc32c',
            '--verify_fatal=1', '--verify_state_save=0',
            '--allow_file_create=0', f'--randseed={rng.randrange(1 << 30)}',
        ]  # fmt: skip
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
