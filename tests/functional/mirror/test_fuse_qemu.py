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
"""QEMU finds a raw file behind the mount, in each of its ways of access."""

import json
import subprocess

import pytest

from tests.functional.mirror import exerciser

CHUNK_BYTES = 256 << 10
SECTOR_BYTES = 512
ACCESS = {
    'none, native': ['-t', 'none', '-n'],
    'none, io_uring': ['-t', 'none', '-i', 'io_uring'],
    'none, threads': ['-t', 'none', '-i', 'threads'],
    'writeback': ['-t', 'writeback', '-i', 'threads'],
    'directsync': ['-t', 'directsync', '-n'],
}


def run(*command):
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    return output


def base(rng, size):
    """Every second chunk is a hole."""
    parts = [
        rng.randbytes(CHUNK_BYTES) if at % 2 == 0 else bytes(CHUNK_BYTES)
        for at in range(-(-size // CHUNK_BYTES))
    ]
    return b''.join(parts)[:size]


class Script:
    """Commands for qemu-io, beside a model of the disk."""

    def __init__(self, content, rng):
        self.model = bytearray(content)
        self.rng = rng
        self.commands = []

    def _span(self, unit):
        sectors = len(self.model) // unit
        offset = self.rng.randrange(sectors)
        length = min(self.rng.randrange(1, 200), sectors - offset)
        return offset * unit, length * unit

    def add(self, asynchronous):
        """One request; requests under way at a time never overlap."""
        kind = self.rng.randrange(6)
        offset, length = self._span(self.rng.choice((512, 512, 4096)))
        end = offset + length
        prefix = 'aio_' if asynchronous else ''
        if kind == 0 and not asynchronous:
            self.commands.append(f'discard {offset} {length}')
            # Whole blocks only, unless it is the whole of the disk's end.
            self.model[offset:end] = bytes(length)
        elif kind == 1:
            unmap = self.rng.choice(('', ' -u'))
            self.commands.append(f'{prefix}write -z{unmap} {offset} {length}')
            self.model[offset:end] = bytes(length)
        elif kind == 2 and not asynchronous:
            cut = length // 2 // 512 * 512
            pattern = self.rng.randrange(1, 256)
            sizes = ' '.join(str(n) for n in (cut, length - cut) if n)
            self.commands.append(f'writev -P {pattern} {offset} {sizes}')
            self.model[offset:end] = bytes([pattern]) * length
        else:
            pattern = self.rng.randrange(1, 256)
            self.commands.append(
                f'{prefix}write -P {pattern} {offset} {length}'
            )
            self.model[offset:end] = bytes([pattern]) * length
        return range(offset, end)

    def requests_one_by_one(self, count):
        for _ in range(count):
            self.add(asynchronous=False)
        self.commands.append('flush')

    def requests_at_depth(self, count):
        """What overlaps waits for what is under way."""
        under_way = []
        for _ in range(count):
            state, kept = self.rng.getstate(), bytes(self.model)
            span = self.add(asynchronous=True)
            if any(
                span.start < other.stop and other.start < span.stop
                for other in under_way
            ):
                self.commands.pop()
                self.model[:] = kept
                self.rng.setstate(state)
                self.commands.append('aio_flush')
                under_way = []
                span = self.add(asynchronous=True)
            under_way.append(span)
        self.commands.append('aio_flush')


def qemu_io(path, how, commands):
    arguments = [part for command in commands for part in ('-c', command)]
    output = run('qemu-io', '-f', 'raw', '-d', 'unmap', *how, *arguments, path)
    assert 'failed' not in output, output
    return output


def compare(path, model, scratch):
    scratch.write_bytes(model)
    run('qemu-img', 'compare', '-f', 'raw', '-F', 'raw', scratch, path)
    assert path.read_bytes() == model


@pytest.mark.soak
@pytest.mark.parametrize('how', ACCESS.values(), ids=ACCESS.keys())
def test_random_requests_leave_what_a_raw_file_would_hold(
    engine, rng, tmp_path, how
):
    content = base(rng, 8 * CHUNK_BYTES - 7 * SECTOR_BYTES)
    path = engine.attach(content)
    for _ in exerciser.rounds():
        script = Script(content, rng)
        script.requests_one_by_one(60)
        script.requests_at_depth(200)
        qemu_io(path, how, script.commands)
        compare(path, script.model, tmp_path / 'model')
        content = bytes(script.model)


class TestSize:
    def test_a_disk_of_whole_sectors_can_be_written_to_its_last_one(
        self, engine, rng
    ):
        """QEMU asks for no more of a raw file on ext4.

        It guesses 4096 if it can read a byte with ``O_DIRECT``, and then
        refuses to write to a disk that is no multiple of that.
        """
        content = base(rng, 2 * CHUNK_BYTES - 7 * SECTOR_BYTES)
        path = engine.attach(content)
        last = len(content) - SECTOR_BYTES
        for how in ACCESS.values():
            commands = [f'write -P 7 {last} 512', f'read -P 7 {last} 512']
            qemu_io(path, how, commands)
        assert path.read_bytes() == content[:last] + b'\7' * SECTOR_BYTES

    def test_it_cannot_be_resized_from_there(self, engine, rng):
        content = base(rng, CHUNK_BYTES)
        path = engine.attach(content)
        for size in ('+1M', '64k'):
            done = subprocess.run(
                ['qemu-img', 'resize', '-f', 'raw', '--shrink', path, size],
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 1
            assert 'Operation not permitted' in done.stderr
        assert path.read_bytes() == content


class TestImages:
    def test_it_is_converted_from_and_to(self, engine, rng, tmp_path):
        content = base(rng, 8 * CHUNK_BYTES)
        path = engine.attach(content)
        copy = tmp_path / 'copy.qcow2'
        for cache in ('none', 'writeback'):
            run(
                'qemu-img', 'convert', '-T', cache, '-O', 'qcow2',
                '-f', 'raw', path, copy,
            )  # fmt: skip
            run('qemu-img', 'compare', '-F', 'raw', copy, path)
            copy.unlink()
        other = tmp_path / 'other'
        other.write_bytes(content[CHUNK_BYTES:] + content[:CHUNK_BYTES])
        for cache in ('none', 'writeback'):
            run(
                'qemu-img', 'convert', '-n', '-t', cache, '-O', 'raw',
                '-f', 'raw', other, path,
            )  # fmt: skip
            run('qemu-img', 'compare', '-f', 'raw', '-F', 'raw', other, path)
            assert path.read_bytes() == other.read_bytes()

    def test_its_holes_are_seen(self, engine, rng):
        """And neither fetched nor read."""
        path = engine.attach(base(rng, 8 * CHUNK_BYTES))
        engine.hold.touch()
        found = json.loads(
            run('qemu-img', 'map', '--output=json', '-f', 'raw', path)
        )
        wanted = [
            (at * CHUNK_BYTES, CHUNK_BYTES, at % 2 == 0) for at in range(8)
        ]
        assert wanted == [
            (part['start'], part['length'], part['data']) for part in found
        ]
        assert engine.call('counts')['asked'] == 0
