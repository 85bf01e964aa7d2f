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
"""A session outlives its server: killed, crashed or handed over.

The test holds the descriptors, as a keeper does, and starts servers one after
the other. Each test runs with a kernel that resends and as with one that does
not (``LAZYIMAGE_FUSE_WITHOUT_RESEND``: the kernel is not asked to).
"""

import concurrent.futures
import contextlib
import errno
import json
import mmap
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from tests.functional.mirror import conftest

BLOCK = 4096
MIB = 1 << 20
CHUNK_BYTES = conftest.CHUNK_BYTES
CHUNKS = 32
WITHOUT_RESEND = 'LAZYIMAGE_FUSE_WITHOUT_RESEND'
# `make soak` asks for more.
KILLS = int(os.environ.get('LAZYIMAGE_SOAK_KILLS', '8'))


class Session(conftest.Engine):
    """Servers that follow one another on one mount."""

    def __init__(self, tmp_path, environment):
        super().__init__(tmp_path)
        self.environment = environment
        self.descriptors = ()
        self.contents = {}
        self.options = {'cache_bytes': 1 << 30, 'threads': 8}

    def begin(self, **environment):
        self._open((), environment)
        self.engine('mount', path=str(self.mount))
        path = self.state / 'keeper'
        with socket.socket(socket.AF_UNIX) as keeper:
            keeper.bind(str(path))
            keeper.listen()
            self.call('send_descriptors', path=str(path))
            with keeper.accept()[0] as sender:
                _, found, _, _ = socket.recv_fds(sender, 16, 2)
        self.descriptors = tuple(found)

    def _open(self, descriptors, environment, session='session-1'):
        self.process = conftest.Process(
            self.mount,
            'engine',
            self.state,
            environment={**self.environment, **environment},
            pass_fds=descriptors,
        )
        self.call(
            'open',
            cache_directory=str(self.state / 'cache'),
            session_id=session,
            **self.options,
        )

    def add(self, content, disk='disk'):
        self.contents[disk] = content
        path = self.attach(content, disk=disk)
        # The first close is told the server, which says never to do so again.
        # Else no process could be started from here while there is none: its
        # copies of our open files are closed before it begins.
        os.close(os.open(path, os.O_RDONLY))
        return path

    def resume(self, session='session-1', **environment):
        """A new server, which has resumed and serves nothing yet."""
        self.open_another(session, **environment)
        self.resume_here()

    def open_another(self, session='session-1', **environment):
        """Another server, that has not resumed."""
        if self.process.popen.poll() is not None:
            self.process.popen.stdin.close()
            self.process.popen.stdout.close()
        self._open(self.descriptors, environment, session)

    def resume_here(self):
        device, memory = self.descriptors
        self.engine(
            'resume', at=str(self.mount), device_fd=device, memory_fd=memory
        )

    def take_over(self, **environment):
        self.resume(**environment)
        for disk, content in self.contents.items():
            self.attach(content, disk=disk, create=False)
        self.engine('serve')

    def kill(self):
        self.process.kill()

    def died(self, seconds=20):
        assert self.process.popen.wait(seconds) == -signal.SIGKILL

    def follow(self):
        """Take over when it has died."""
        self.died()
        self.take_over()

    def close(self):
        self.hold.unlink(missing_ok=True)
        if self.process is not None:
            self.process.end()
        for number in self.descriptors:
            os.close(number)


@pytest.fixture(params=['resent', 'kept'])
def session(request, tmp_path):
    """Without a server; the kernel resends, or the memory has to do."""
    environment = {} if request.param == 'resent' else {WITHOUT_RESEND: '1'}
    made = Session(tmp_path / 'session', environment)
    made.resends = request.param == 'resent'
    yield made
    made.close()


@pytest.fixture
def content(rng):
    return rng.randbytes(CHUNKS * CHUNK_BYTES)


@pytest.fixture
def pool():
    with concurrent.futures.ThreadPoolExecutor(96) as made:
        yield made


@contextlib.contextmanager
def opened(path, flags=0):
    fd = os.open(path, os.O_RDWR | flags)
    try:
        yield fd
    finally:
        with contextlib.suppress(OSError):
            os.close(fd)


def block(*parts):
    """Aligned memory, as O_DIRECT wants it."""
    data = b''.join(parts)
    memory = mmap.mmap(-1, max(len(data), BLOCK))
    memory[: len(data)] = data
    return memory


def write(fd, data, offset):
    assert os.pwrite(fd, block(data), offset) == max(len(data), BLOCK)


def read(fd, length, offset):
    memory = mmap.mmap(-1, length)
    assert os.preadv(fd, [memory], offset) == length
    return memory[:]


class Writers:
    """Clients that own a block each in turn and check what they read."""

    def __init__(self, path, base, threads=6, flush=0.02):
        self.path = path
        self.base = base
        self.count = threads
        self.flush = flush
        self.stopping = threading.Event()
        self.errors = []
        self.operations = 0
        self.worst = 0.0
        self.written = [{} for _ in range(threads)]
        self.threads = [
            threading.Thread(target=self._run, args=(number,), daemon=True)
            for number in range(threads)
        ]
        for thread in self.threads:
            thread.start()

    def _run(self, number):
        try:
            self._write(number, random.Random(number))
        except Exception as exc:
            self.errors.append(f'{number}: {exc!r}')

    def _write(self, number, chance):
        mine = self.written[number]
        blocks = len(self.base) // BLOCK
        with opened(self.path, os.O_DIRECT) as fd:
            while not self.stopping.is_set():
                at = chance.randrange(blocks // self.count) * self.count
                at += number
                known = mine.get(at)
                if known is None:
                    known = self.base[at * BLOCK :][:BLOCK]
                started = time.monotonic()
                found = read(fd, BLOCK, at * BLOCK)
                if found != known:
                    self.errors.append(f'{number}: block {at} is another')
                    return
                if chance.random() < 0.2:
                    # Part of a block: filled in, alone.
                    data = known[:512] + chance.randbytes(512) + known[1024:]
                    part = block(data[512:1024])
                    got = os.pwritev(
                        fd, [memoryview(part)[:512]], at * BLOCK + 512
                    )
                    assert got == 512
                else:
                    data = chance.randbytes(BLOCK)
                    write(fd, data, at * BLOCK)
                mine[at] = data
                if chance.random() < self.flush:
                    os.fsync(fd)
                self.worst = max(self.worst, time.monotonic() - started)
                self.operations += 1

    def stop(self, seconds=30):
        self.stopping.set()
        for thread in self.threads:
            thread.join(seconds)
            assert not thread.is_alive(), 'a client hangs'
        assert not self.errors, self.errors[:3]

    def check(self):
        with opened(self.path) as fd:
            for mine in self.written:
                for at, data in mine.items():
                    assert os.pread(fd, BLOCK, at * BLOCK) == data, at


class TestKilled:
    @pytest.mark.soak
    def test_writers_see_no_error_and_no_old_block_however_often_it_dies(
        self, session, content, rng
    ):
        session.begin()
        writers = Writers(session.add(content), content)
        for _ in range(KILLS):
            time.sleep(rng.uniform(0.02, 0.25))
            session.kill()
            session.take_over()
        time.sleep(0.1)
        assert session.engine('statistics')['fuse_refused_answers'] == 0
        writers.stop()
        writers.check()
        assert writers.operations > KILLS * 10

    @pytest.mark.soak
    def test_it_dies_while_it_takes_over(self, session, content, rng):
        session.begin()
        writers = Writers(session.add(content), content)
        for _ in range(max(KILLS // 2, 3)):
            time.sleep(0.05)
            session.kill()
            session.resume()
            session.kill()
            session.resume()
            session.attach(content, create=False)
            pipe = session.process.popen.stdin
            pipe.write('{"on": "engine", "call": "serve", "kwargs": {}}\n')
            pipe.flush()
            time.sleep(rng.uniform(0, 0.01))
            session.kill()
            session.take_over()
        time.sleep(0.1)
        writers.stop()
        writers.check()

    @pytest.mark.parametrize('depth', [1, 16])
    def test_fio_verifies_what_it_wrote(self, session, content, rng, depth):
        if shutil.which('fio') is None:
            pytest.skip('fio is missing')
        session.begin()
        path = session.add(content)
        fio = subprocess.Popen(
            [
                'fio',
                '--name=verify',
                f'--filename={path}',
                '--rw=randrw',
                '--bs=4k-64k',
                '--direct=1',
                '--ioengine=libaio',
                f'--iodepth={depth}',
                f'--size={len(content)}',
                '--io_size=64m',
                '--rate=24m',
                '--fsync=64',
                '--verify=crc32c',
                '--verify_fatal=1',
                '--verify_backlog=64',
                '--randrepeat=0',
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=session.state,
        )
        for _ in range(4):
            time.sleep(rng.uniform(0.1, 0.3))
            session.kill()
            session.take_over()
        said, _ = fio.communicate(timeout=60)
        assert fio.returncode == 0, said[-2000:]

    @pytest.mark.parametrize(
        'point',
        [
            'received:40',
            'write-unsettled:20',
            'write-executed:20',
            'write-answered:20',
            'write-before-flush:3',
            'parked-executed:3',
        ],
    )
    def test_it_dies_between_any_two_steps(
        self, session, content, pool, point
    ):
        session.begin(LAZYIMAGE_KILL_AT=point)
        path = session.add(content)
        follows = pool.submit(session.follow)
        writers = Writers(path, content[: len(content) // 2])
        # Durable writes that have to wait for the rest of their blocks.
        places = range(len(content) // 2, len(content), CHUNK_BYTES)
        with opened(path, os.O_DSYNC) as fd:
            for at in places:
                assert os.pwrite(fd, b'new', at + 100) == 3
            follows.result(30)
            for at in places:
                expected = content[at : at + 100] + b'new'
                assert os.pread(fd, 103, at) == expected
        writers.stop()
        writers.check()


class TestParked:
    def test_reads_and_writes_that_wait_survive_two_deaths(
        self, session, content, pool, rng
    ):
        session.hold.touch()
        session.begin()
        path = session.add(content)
        data = {n: rng.randbytes(rng.randrange(1, 9000)) for n in range(8, 16)}
        data[16] = rng.randbytes(CHUNK_BYTES + 700)
        with opened(path) as fd:
            reads = [
                pool.submit(os.pread, fd, 8192, n % 8 * CHUNK_BYTES + n * 512)
                for n in range(64)
            ]
            writes = {
                n: pool.submit(os.pwrite, fd, part, n * CHUNK_BYTES + 100)
                for n, part in data.items()
            }
            # Durable, and across two chunks.
            with opened(path, os.O_DSYNC) as durable:
                at = 21 * CHUNK_BYTES - 3
                writes[20] = pool.submit(os.pwrite, durable, b'across', at)
                parked = len(reads) + len(writes)
                for _ in range(2):
                    conftest.wait_for(
                        lambda: (
                            session.engine('statistics')['parked_now']
                            == parked
                        ),
                        'all to be parked',
                    )
                    session.kill()
                    session.take_over()
                assert not any(
                    one.done() for one in [*reads, *writes.values()]
                )
                session.hold.unlink()
                for n, one in enumerate(reads):
                    start = n % 8 * CHUNK_BYTES + n * 512
                    assert one.result(20) == content[start : start + 8192]
                assert writes.pop(20).result(20) == 6
            expected = bytearray(content)
            expected[at : at + 6] = b'across'
            for n, part in data.items():
                assert writes[n].result(20) == len(part)
                at = n * CHUNK_BYTES + 100
                expected[at : at + len(part)] = part
            found = path.read_bytes()
            assert found == expected
        assert session.engine('statistics')['parked_now'] == 0

    @pytest.mark.parametrize('session', ['kept'], indirect=True)
    def test_more_of_writes_than_there_is_room_at_first_survives(
        self, session, pool, rng
    ):
        """As when a disk with full queues is held for a COMMIT."""
        count = 80
        # One chunk again and again: it is fetched once.
        base = rng.randbytes(CHUNK_BYTES) * (count * MIB // CHUNK_BYTES + 1)
        session.hold.touch()
        session.begin()
        path = session.add(base)
        with opened(path) as fd:
            writes = [
                pool.submit(
                    os.pwrite, fd, block(bytes([n]) * MIB), n * MIB + 100
                )
                for n in range(count)
            ]
            conftest.wait_for(
                lambda: session.engine('statistics')['parked_now'] == count,
                'all to be parked',
            )
            session.kill()
            session.take_over()
            session.hold.unlink()
            assert [one.result(20) for one in writes] == [MIB] * count
        written = b''.join(bytes([n]) * MIB for n in range(count))
        found = path.read_bytes()
        assert found[100 : 100 + len(written)] == written
        assert found[:100] == base[:100]
        assert found[100 + len(written) :] == base[100 + len(written) :]

    def test_a_process_that_is_killed_meanwhile_ends(self, session, content):
        session.hold.touch()
        session.begin()
        path = session.add(content)
        reader = subprocess.Popen(
            [sys.executable, '-I', '-c', f'open({str(path)!r}, "rb").read(9)']
        )
        conftest.wait_for(
            lambda: session.engine('statistics')['parked_now'] == 1,
            'the read',
        )
        session.kill()
        reader.kill()
        time.sleep(0.05)
        session.take_over()
        assert reader.wait(10) == -signal.SIGKILL

    def test_local_requests_are_served_beside_what_still_waits(
        self, session, content, pool
    ):
        session.begin()
        path = session.add(content)
        with opened(path, os.O_DIRECT) as fd:
            write(fd, b'a' * BLOCK, 0)
            session.hold.touch()
            waits = pool.submit(read, fd, BLOCK, 9 * CHUNK_BYTES)
            conftest.wait_for(
                lambda: session.engine('statistics')['parked_now'] == 1,
                'the read',
            )
            session.kill()
            session.take_over()
            assert read(fd, BLOCK, 0) == b'a' * BLOCK
            write(fd, b'b' * BLOCK, BLOCK)
            os.fsync(fd)
            assert not waits.done()
            session.hold.unlink()
            start = 9 * CHUNK_BYTES
            assert waits.result(20) == content[start : start + BLOCK]


class TestNeverTwice:
    """The first write stands executed, and is not answered, when it dies.

    Meanwhile a second one to the same place was acknowledged, and read.
    """

    @pytest.mark.parametrize(
        ('point', 'durable', 'partial'),
        [
            ('write-executed', False, False),
            ('write-before-flush', True, False),
            ('parked-executed', False, True),
        ],
    )
    def test_an_executed_write_is_only_answered(
        self, session, content, pool, point, durable, partial
    ):
        session.begin(LAZYIMAGE_STALL_AT=point)
        path = session.add(content)
        flags = os.O_DIRECT | (os.O_DSYNC if durable else 0)
        with opened(path, flags) as first, opened(path, os.O_DIRECT) as fd:
            if partial:
                one = memoryview(block(b'1' * BLOCK))[:512]
                pending = pool.submit(os.pwritev, first, [one], 512)
                expected = content[:512] + b'1' * 512 + content[1024:BLOCK]
            else:
                one = block(b'1' * BLOCK)
                pending = pool.submit(os.pwritev, first, [one], 0)
                expected = b'1' * BLOCK
            conftest.wait_for(
                lambda: read(fd, BLOCK, 0) == expected, 'the first write'
            )
            write(fd, b'2' * BLOCK, 0)
            assert not pending.done()
            session.kill()
            session.take_over()
            assert pending.result(20) == len(one)
            assert read(fd, BLOCK, 0) == b'2' * BLOCK


class TestPoison:
    def test_a_request_that_three_servers_did_not_survive_gets_eio(
        self, session, content, pool
    ):
        session.begin(LAZYIMAGE_KILL_AT='write-unsettled')
        path = session.add(content)
        with opened(path, os.O_DIRECT) as fd:
            pending = pool.submit(os.pwrite, fd, block(b'x' * BLOCK), 0)
            self.die_of(session, pending, 'write-unsettled')
            write(fd, b'y' * BLOCK, 0)
            assert read(fd, BLOCK, 0) == b'y' * BLOCK

    def test_so_does_one_that_kills_them_after_it_has_waited(
        self, session, content, pool
    ):
        session.begin(LAZYIMAGE_KILL_AT='parked-running')
        path = session.add(content)
        with opened(path) as fd:
            pending = pool.submit(os.pwrite, fd, b'new', 100)
            self.die_of(session, pending, 'parked-running')
            assert os.pwrite(fd, b'new', 100) == 3
            expected = content[:100] + b'new' + content[103:BLOCK]
            assert os.pread(fd, BLOCK, 0) == expected

    @staticmethod
    def die_of(session, pending, point):
        for _ in range(2):
            session.died()
            # What had to be fetched has to be fetched again.
            shutil.rmtree(session.state / 'cache')
            # It may be dead before it has said that it serves.
            with contextlib.suppress(json.JSONDecodeError):
                session.take_over(LAZYIMAGE_KILL_AT=point)
        session.died()
        assert not pending.done()
        session.take_over()
        with pytest.raises(OSError) as caught:
            pending.result(20)
        assert caught.value.errno == errno.EIO
        while True:
            event = session.engine('next_event', timeout_seconds=5)
            assert event is not None, 'no alarm'
            if 'too many deaths' in event.get('what', ''):
                break


class TestHandOver:
    def test_the_next_server_goes_on_while_the_first_still_lives(
        self, session, content, pool
    ):
        session.begin()
        path = session.add(content)
        writers = Writers(path, content[: len(content) // 2])
        time.sleep(0.3)
        session.hold.touch()
        with opened(path) as fd:
            last = 24 * CHUNK_BYTES
            waits = [
                pool.submit(os.pread, fd, BLOCK, last + n * CHUNK_BYTES)
                for n in range(4)
            ]
            parked = pool.submit(os.pwrite, fd, b'new', 30 * CHUNK_BYTES + 1)
            time.sleep(0.2)
            first = session.process
            for _ in range(2):
                session.engine('hand_over')
                # It does no harm any more, however it ends.
                session.engine('unmount')
                assert session.process.popen.poll() is None
                before, session.process = session.process, first
                session.take_over()
                before.kill()
                time.sleep(0.1)
            assert not parked.done()
            session.hold.unlink()
            for n, one in enumerate(waits):
                start = last + n * CHUNK_BYTES
                assert one.result(20) == content[start : start + BLOCK]
            assert parked.result(20) == 3
            start = 30 * CHUNK_BYTES
            expected = content[start : start + 1] + b'new'
            assert os.pread(fd, 4, start) == expected
        writers.stop()
        writers.check()


class TestSession:
    def test_open_files_owners_and_node_ids_stay(self, session, content, rng):
        session.begin()
        path = session.add(content)
        other = session.add(content, 'other')
        with opened(path) as fd:
            before = os.fstat(fd)
            os.chown(path, 64055, 108)
            os.chmod(path, 0o600)
            session.kill()
            session.take_over()
            after = os.fstat(fd)
            assert after.st_ino == before.st_ino
            assert (after.st_uid, after.st_gid) == (64055, 108)
            assert after.st_mode & 0o7777 == 0o600
            taken = {after.st_ino, os.stat(other).st_ino}
            taken.add(os.stat(path.parent).st_ino)
            third = session.add(content, 'third')
            assert os.stat(third).st_ino not in taken

    def test_a_disk_that_is_not_attached_yet_fails_and_comes_back(
        self, session, content
    ):
        session.begin()
        path = session.add(content)
        with opened(path) as fd:
            session.kill()
            session.resume()
            session.engine('serve')
            with pytest.raises(OSError) as caught:
                os.pread(fd, BLOCK, 0)
            assert caught.value.errno == errno.EIO
            session.attach(content, create=False)
            assert os.pread(fd, BLOCK, 0) == content[:BLOCK]

    def test_a_live_map_that_is_gone_ends_the_session(self, session, content):
        session.begin()
        path = session.add(content)
        with opened(path) as fd:
            os.pwrite(fd, b'new', 0)
            session.kill()
            (session.state / 'live' / 'disk').unlink()
            session.resume()
            with pytest.raises(conftest.MirrorError) as caught:
                session.attach(content, create=False)
            assert caught.value.errno == errno.ESTALE
            session.engine('abandon_session')
            assert not conftest.is_mounted(session.mount)
            with pytest.raises(OSError) as error:
                os.pread(fd, 3, 0)
            assert error.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
        session.engine('mount', path=str(session.mount))
        session.attach(content, create=False)
        assert path.stat().st_size == len(content)

    def test_a_dropped_session_is_resumed_as_after_a_death(
        self, session, content
    ):
        session.begin()
        path = session.add(content)
        with opened(path) as fd:
            os.pwrite(fd, b'new', 0)
            # The interpreter ends in order: nobody unmounts.
            session.process.popen.stdin.close()
            assert session.process.popen.wait(20) == 0
            session.process.popen.stdout.close()
            session._open(session.descriptors, {})
            device, memory = session.descriptors
            session.engine(
                'resume',
                at=str(session.mount),
                device_fd=device,
                memory_fd=memory,
            )
            session.attach(content, create=False)
            session.engine('serve')
            assert os.pread(fd, 3, 0) == b'new'


class TestRefusals:
    def test_a_connection_that_has_ended_is_named(self, session, content):
        session.begin()
        session.add(content)
        session.kill()
        subprocess.run(['umount', '-f', str(session.mount)], check=False)
        with pytest.raises(conftest.MirrorError) as caught:
            session.resume()
        assert caught.value.errno == errno.ENOTCONN

    def test_another_session_id_is_refused_and_the_right_one_is_not(
        self, session, content
    ):
        session.begin()
        path = session.add(content)
        session.kill()
        with pytest.raises(conftest.MirrorError, match='another session'):
            session.resume(session='session-2')
        # Its descriptors are still the caller's.
        with pytest.raises(conftest.MirrorError, match='another session'):
            device, memory = session.descriptors
            session.engine(
                'resume',
                at=str(session.mount),
                device_fd=device,
                memory_fd=memory,
            )
        session.kill()
        session.take_over()
        assert path.read_bytes() == content

    def test_what_is_no_session_memory_is_refused(self, session, content):
        session.begin()
        device, _ = session.descriptors
        memory = os.memfd_create('another')
        os.write(memory, bytes(1 << 16))
        session.kill()
        kept, session.descriptors = session.descriptors, (device, memory)
        with pytest.raises(conftest.MirrorError, match='no session memory'):
            session.resume()
        os.close(memory)
        session.descriptors = kept

    def test_without_room_for_its_memory_nothing_is_mounted(self, session):
        session._open((), {})
        limit = (8 << 20, resource.RLIM_INFINITY)
        popen = session.process.popen
        resource.prlimit(popen.pid, resource.RLIMIT_FSIZE, limit)
        with pytest.raises(conftest.MirrorError) as caught:
            session.engine('mount', path=str(session.mount))
        assert caught.value.errno == errno.EFBIG
        assert not conftest.is_mounted(session.mount)
