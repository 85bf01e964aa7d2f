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
"""What waits for a chunk holds up nobody else, and can always be ended."""

import concurrent.futures
import contextlib
import errno
import mmap
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

CHUNK_BYTES = 256 << 10
CHUNKS = 80

# Reads one block with O_DIRECT at the offset given; a handler for USR1.
READER = """
import mmap, os, signal, sys
signal.signal(signal.SIGUSR1, lambda *_: None)
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
buffer = mmap.mmap(-1, 4096)
print('reading', flush=True)
libc = __import__('ctypes').CDLL(None, use_errno=True)
import ctypes
address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
libc.pread.restype = ctypes.c_ssize_t
libc.pread.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t,
                       ctypes.c_int64]
got = libc.pread(fd, address, 4096, int(sys.argv[2]))
sys.exit(0 if got == 4096 else ctypes.get_errno())
"""


def wait_for(condition, what, seconds=20.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f'waited in vain for {what}'
        time.sleep(0.002)


@pytest.fixture
def content(rng):
    return rng.randbytes(CHUNKS * CHUNK_BYTES)


@pytest.fixture
def held(engine):
    """No chunk is fetched until ``let_go`` is called."""
    engine.hold.touch()
    yield engine
    engine.hold.unlink(missing_ok=True)


@contextlib.contextmanager
def opened(path, flags=os.O_RDWR):
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        with contextlib.suppress(OSError):
            os.close(fd)


def asked(engine):
    return engine.call('counts')['asked']


def threads_of(engine):
    """The workers of the door and of the engine, and how each sleeps."""
    tasks = pathlib.Path(f'/proc/{engine.process.popen.pid}/task')
    found = []
    for task in tasks.iterdir():
        name = (task / 'comm').read_text().strip()
        if name.startswith(('fuse-', 'mirror-')):
            state = (task / 'stat').read_text().rpartition(')')[2].split()[0]
            found.append((name, state))
    return sorted(found)


@pytest.fixture
def readers():
    """Processes that read a block each, ended with the test."""
    started = []

    def start(path, offset):
        popen = subprocess.Popen(
            [sys.executable, '-I', '-c', READER, str(path), str(offset)],
            stdout=subprocess.PIPE,
        )
        started.append(popen)
        assert popen.stdout.readline() == b'reading\n'
        return popen

    yield start
    for popen in started:
        popen.kill()
        popen.stdout.close()


class TestMisses:
    def test_a_miss_is_fetched_and_then_local_reads_are_not(
        self, engine, content
    ):
        path = engine.attach(content)
        with opened(path) as fd:
            assert os.pread(fd, 100, 1000) == content[1000:1100]
            assert os.pread(fd, 100, 5000) == content[5000:5100]
        assert engine.call('counts')['fetches'] == 1

    def test_64_misses_wait_at_the_same_time_and_all_are_answered(
        self, held, content
    ):
        path = held.attach(content)
        with (
            opened(path) as fd,
            concurrent.futures.ThreadPoolExecutor(64) as pool,
        ):
            reads = [
                pool.submit(os.pread, fd, 4096, chunk * CHUNK_BYTES)
                for chunk in range(64)
            ]
            wait_for(lambda: asked(held) == 64, '64 fetches')
            held.hold.unlink()
            for chunk, read in enumerate(reads):
                start = chunk * CHUNK_BYTES
                assert read.result(20) == content[start : start + 4096]

    def test_stat_open_and_close_never_wait_while_64_reads_do(
        self, held, content
    ):
        path = held.attach(content)
        with (
            opened(path) as fd,
            concurrent.futures.ThreadPoolExecutor(64) as pool,
        ):
            reads = [
                pool.submit(os.pread, fd, 4096, chunk * CHUNK_BYTES)
                for chunk in range(64)
            ]
            wait_for(lambda: asked(held) == 64, '64 fetches')
            start = time.monotonic()
            while time.monotonic() - start < 2.5:  # kept attributes end
                before = time.monotonic()
                found = os.stat(path)
                assert os.listdir(path.parent) == ['disk']
                with opened(path):
                    pass
                assert time.monotonic() - before < 0.5
                time.sleep(0.1)
            assert found.st_size == len(content)
            assert not any(read.done() for read in reads)
            held.hold.unlink()
            assert all(len(read.result(20)) == 4096 for read in reads)

    def test_local_blocks_are_read_and_written_while_64_reads_wait(
        self, held, content, rng
    ):
        path = held.attach(content)
        data = rng.randbytes(4096)
        with (
            opened(path) as fd,
            concurrent.futures.ThreadPoolExecutor(64) as pool,
        ):
            reads = [
                pool.submit(os.pread, fd, 4096, chunk * CHUNK_BYTES)
                for chunk in range(64)
            ]
            wait_for(lambda: asked(held) == 64, '64 fetches')
            offset = 70 * CHUNK_BYTES
            assert os.pwrite(fd, data, offset) == 4096
            assert os.pread(fd, 4096, offset) == data
            os.fsync(fd)
            assert not any(read.done() for read in reads)
            held.hold.unlink()
            assert all(len(read.result(20)) == 4096 for read in reads)

    def test_local_blocks_are_served_while_python_stands_still(
        self, held, content, rng
    ):
        path = held.attach(content)
        data = rng.randbytes(16 * 4096)
        holder = threading.Thread(
            target=held.call, args=('hold_the_gil',), kwargs={'seconds': 4}
        )
        with opened(path) as fd:
            os.pwrite(fd, data, 0)
            holder.start()
            wait_for((held.state / 'held').exists, 'the GIL')
            for turn in range(200):
                at = turn % 16 * 4096
                os.pwrite(fd, data[at : at + 4096], at)
                assert os.pread(fd, 4096, at) == data[at : at + 4096]
                os.stat(path)
            os.fsync(fd)
            assert holder.is_alive(), 'it was let go of: this proves nothing'
            holder.join()

    def test_misses_take_no_thread_from_who_is_local(self, held, content, rng):
        """The engine's threads are as many as before, and all of them idle."""
        path = held.attach(content)
        data = rng.randbytes(16 * 4096)
        offset = 70 * CHUNK_BYTES
        with (
            opened(path) as fd,
            concurrent.futures.ThreadPoolExecutor(64) as pool,
        ):
            os.pwrite(fd, data, offset)
            before = threads_of(held)
            reads = [
                pool.submit(os.pread, fd, 4096, chunk * CHUNK_BYTES)
                for chunk in range(64)
            ]
            wait_for(lambda: asked(held) == 64, '64 fetches')
            for turn in range(1000):
                at = turn % 16 * 4096
                found = os.pread(fd, 4096, offset + at)
                assert found == data[at : at + 4096]
            assert not any(read.done() for read in reads)
            wait_for(lambda: threads_of(held) == before, 'idle threads')
            held.hold.unlink()
            assert all(len(read.result(20)) == 4096 for read in reads)

    def test_readers_of_one_chunk_share_one_fetch(self, held, content):
        path = held.attach(content)
        with (
            opened(path) as fd,
            concurrent.futures.ThreadPoolExecutor(16) as pool,
        ):
            reads = [
                pool.submit(os.pread, fd, 512, block * 4096)
                for block in range(16)
            ]
            wait_for(lambda: asked(held) == 1, 'the fetch')
            time.sleep(0.1)
            held.hold.unlink()
            for block, read in enumerate(reads):
                start = block * 4096
                assert read.result(20) == content[start : start + 512]
        assert asked(held) == 1

    def test_a_write_into_part_of_a_block_waits_for_the_rest_of_it(
        self, held, content
    ):
        path = held.attach(content)
        with (
            opened(path) as fd,
            concurrent.futures.ThreadPoolExecutor(1) as pool,
        ):
            write = pool.submit(os.pwrite, fd, b'new', 4100)
            wait_for(lambda: asked(held) == 1, 'the fetch')
            assert not write.done()
            held.hold.unlink()
            assert write.result(20) == 3
            expected = content[4096:4100] + b'new' + content[4103:8192]
            assert os.pread(fd, 4096, 4096) == expected


class TestEnds:
    def test_a_signal_ends_a_waiting_read(self, held, content, readers):
        path = held.attach(content)
        reader = readers(path, 0)
        wait_for(lambda: asked(held) == 1, 'the fetch')
        time.sleep(0.1)
        reader.send_signal(signal.SIGUSR1)
        assert reader.wait(10) == errno.EINTR

    def test_sigkill_ends_a_process_whose_read_waits(
        self, held, content, readers
    ):
        path = held.attach(content)
        started = [readers(path, n * CHUNK_BYTES) for n in range(8)]
        wait_for(lambda: asked(held) == 8, 'the fetches')
        for reader in started:
            reader.kill()
        for reader in started:
            assert reader.wait(10) == -signal.SIGKILL

    def test_a_signal_that_comes_at_any_moment_ends_the_read(
        self, held, content, readers
    ):
        """The INTERRUPT may overtake its request on the way to the disk."""
        path = held.attach(content)
        for n in range(40):
            reader = readers(path, n * CHUNK_BYTES)
            time.sleep(n * 0.0001)
            reader.kill()
            assert reader.wait(10) == -signal.SIGKILL

    def test_detaching_ends_waiting_reads_with_an_error(
        self, held, content, readers
    ):
        path = held.attach(content)
        started = [readers(path, n * CHUNK_BYTES) for n in range(4)]
        wait_for(lambda: asked(held) == 4, 'the fetches')
        held.engine('detach', instance=path.parent.name, disk=path.name)
        for reader in started:
            assert reader.wait(10) == errno.EIO

    def test_ended_misses_fail_until_they_are_allowed_again(
        self, held, content, readers
    ):
        path = held.attach(content)
        reader = readers(path, 0)
        wait_for(lambda: asked(held) == 1, 'the fetch')
        held.mirror('end_misses')
        assert reader.wait(10) == errno.EIO
        assert readers(path, CHUNK_BYTES).wait(10) == errno.EIO
        held.mirror('allow_misses')
        held.hold.unlink()
        assert readers(path, 2 * CHUNK_BYTES).wait(10) == 0

    def test_unmounting_ends_every_waiting_read(self, held, content, readers):
        path = held.attach(content)
        started = [readers(path, n * CHUNK_BYTES) for n in range(4)]
        wait_for(lambda: asked(held) == 4, 'the fetches')
        held.engine('unmount')
        for reader in started:
            assert reader.wait(10) in (errno.ECONNABORTED, errno.ENOTCONN)


class TestAttachments:
    def test_a_detached_name_is_gone_at_once_and_open_files_fail(
        self, engine, content
    ):
        path = engine.attach(content)
        with opened(path) as fd:
            os.pread(fd, 4096, 0)
            assert os.stat(path).st_size == len(content)
            engine.engine('detach', instance=path.parent.name, disk=path.name)
            assert not path.exists()
            assert not path.parent.exists()
            with pytest.raises(OSError) as caught:
                os.pread(fd, 4096, 0)
            assert caught.value.errno == errno.EIO

    def test_growth_shows_at_once(self, engine, content):
        path = engine.attach(content)
        with opened(path, os.O_RDWR | os.O_DIRECT) as fd:
            assert os.fstat(fd).st_size == len(content)
            grown = len(content) + 5 * CHUNK_BYTES
            engine.mirror('grow', size_bytes=grown)
            assert os.fstat(fd).st_size == grown
            assert os.stat(path).st_size == grown
            with mmap.mmap(-1, 4096) as block:
                block[:] = b'g' * 4096
                assert os.pwrite(fd, block, grown - 4096) == 4096
                block[:] = bytes(4096)
                assert os.preadv(fd, [block], grown - 4096) == 4096
                assert block[:] == b'g' * 4096

    def test_a_change_of_owner_is_told_once_and_one_by_the_host_is_not(
        self, engine, content
    ):
        path = engine.attach(content)
        os.chown(path, 64055, 108)
        event = engine.engine('next_event', timeout_seconds=5)
        assert event == {
            'kind': 'owner',
            'instance': path.parent.name,
            'disk': 'disk',
            'uid': 64055,
            'gid': 108,
            'mode': 0o644,
        }
        os.chown(path, 64055, 108)
        engine.mirror('set_owner', uid=1, gid=2, mode=0o600)
        found = os.stat(path)
        assert (found.st_uid, found.st_gid) == (1, 2)
        assert found.st_mode & 0o7777 == 0o600
        assert engine.engine('next_event', timeout_seconds=0) is None

    def test_two_disks_of_a_server_stand_side_by_side(self, engine, content):
        first = engine.attach(content, disk='disk')
        second = engine.attach(content[::-1], disk='disk.eph0')
        assert sorted(os.listdir(first.parent)) == ['disk', 'disk.eph0']
        assert first.read_bytes() == content
        assert second.read_bytes() == content[::-1]
        engine.engine('detach', instance=first.parent.name, disk='disk')
        assert os.listdir(first.parent) == ['disk.eph0']

    @pytest.mark.parametrize('how', ['stop', 'kill'])
    def test_what_was_written_is_there_for_the_next_server(
        self, engine, content, rng, how
    ):
        path = engine.attach(content)
        data = rng.randbytes(300_000)
        with opened(path) as fd:
            os.pwrite(fd, data, 12_345)
        if how == 'stop':
            engine.engine('stop')
        # The dead server's mount is taken away by the next one.
        engine.process.kill()
        engine.start()
        again = engine.attach(content, create=False)
        expected = bytearray(content)
        expected[12_345 : 12_345 + len(data)] = data
        assert again.read_bytes() == expected

    def test_a_mount_that_another_process_serves_is_left_alone(
        self, engine, content, tmp_path
    ):
        path = engine.attach(content)
        other = type(engine)(tmp_path / 'other')
        other.mount = engine.mount
        with pytest.raises(Exception, match=r'[Bb]usy'):
            other.start()
        other.process.kill()
        assert path.read_bytes()[:100] == content[:100]

    def test_attaching_and_detaching_under_load_harms_no_other_disk(
        self, engine, content
    ):
        path = engine.attach(content)
        stop, errors = threading.Event(), []

        def read():
            while not stop.is_set():
                if path.read_bytes() != content:
                    errors.append('wrong content')

        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            loads = [pool.submit(read) for _ in range(2)]
            for _ in range(20):
                other = engine.attach(content[:CHUNK_BYTES], disk='other')
                assert other.read_bytes() == content[:CHUNK_BYTES]
                where = {'instance': path.parent.name, 'disk': 'other'}
                engine.engine('detach', **where)
                assert not other.exists()
                for name in (engine.state / 'mirror-other').iterdir():
                    name.unlink()
                (engine.state / 'live' / 'other').unlink(missing_ok=True)
            stop.set()
            for load in loads:
                load.result(20)
        assert not errors

    def test_no_program_that_the_agent_runs_inherits_a_descriptor(
        self, engine, content
    ):
        path = engine.attach(content)
        with opened(path) as fd:
            os.pread(fd, 4096, 0)
        process = pathlib.Path(f'/proc/{engine.process.popen.pid}')
        named = {
            int(link.name): os.readlink(link)
            for link in (process / 'fd').iterdir()
        }
        assert '/dev/fuse' in named.values()
        for number, name in named.items():
            text = (process / 'fdinfo' / str(number)).read_text()
            flags = int(re.search(r'flags:\s+(\d+)', text)[1], 8)
            assert number < 3 or flags & os.O_CLOEXEC, name

    def test_no_answer_was_refused_by_the_kernel(self, engine, content):
        path = engine.attach(content)
        assert path.read_bytes() == content
        assert engine.engine('statistics')['fuse_refused_answers'] == 0
