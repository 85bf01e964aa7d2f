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
"""The holder keeps descriptors, and starts again what it keeps them for."""

import contextlib
import itertools
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

import nova_lazyimage

ROOT = pathlib.Path(nova_lazyimage.__file__).parent.parent
PROGRAM = pathlib.Path(__file__).with_name('kept_program.py')


def command_of(pid):
    with contextlib.suppress(OSError):
        line = pathlib.Path(f'/proc/{pid}/cmdline').read_bytes()
        return line.split(b'\0')[1].decode()
    return ''


class Kept:
    """The holder, its program, and what they said."""

    def __init__(self, folder):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(str(folder / 's'))
        self.socket.listen()
        self.socket.settimeout(20)
        self.log = (folder / 'log').open('w+')
        self.stream = None
        self.before = []
        self.pid = 0
        self.holder = subprocess.Popen(
            [
                *(sys.executable, '-m', 'nova_lazyimage.cmd.holder', '--'),
                *(sys.executable, str(PROGRAM), str(folder / 's')),
            ],
            env={**os.environ, 'PYTHONPATH': str(ROOT)},
            stderr=self.log,
        )

    def handed(self):
        """What the program that starts now is handed."""
        if self.stream is not None:
            self.before.append((self.pid, self.stream))
        connection, _ = self.socket.accept()
        connection.settimeout(20)
        with connection:
            self.stream = connection.makefile('rw')
        pid, rest = self.stream.readline().strip().split(maxsplit=1)
        self.pid = int(pid)
        return rest

    def tell(self, line):
        print(line, file=self.stream, flush=True)

    def ask(self, line):
        self.tell(line)
        return self.stream.readline().strip()

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)

    def back(self):
        """Speak with the program before the last one again."""
        now = self.pid, self.stream
        self.pid, self.stream = self.before.pop()
        self.before.append(now)

    def is_gone(self):
        return self.stream.read() == ''

    def close(self):
        if self.holder.poll() is None:
            self.holder.kill()
            self.holder.wait()
            for pid in {self.pid, *(pid for pid, _ in self.before)} - {0}:
                if command_of(pid) == str(PROGRAM):
                    os.kill(pid, signal.SIGKILL)
        for _, stream in [*self.before, (self.pid, self.stream)]:
            if stream is not None:
                stream.close()
        self.socket.close()
        self.log.close()


@pytest.fixture
def kept(tmp_path):
    made = Kept(tmp_path)
    yield made
    made.close()


def begin(kept):
    assert kept.handed() == '[]'
    assert kept.ask('ready') == 'ready'


class TestKeeping:
    def test_a_killed_program_finds_what_it_gave_by_name(self, kept):
        begin(kept)
        assert kept.ask('give session=one memory=two') == 'True'
        kept.kill()
        assert kept.handed() == "[('memory', 'two'), ('session', 'one')]"

    def test_it_is_the_very_file_and_no_copy(self, kept):
        begin(kept)
        kept.ask('give memory=a')
        for _ in range(3):
            kept.kill()
            handed = kept.handed()
            kept.ask('append memory')
        assert handed == "[('memory', 'a++')]"

    def test_giving_again_replaces_what_was_kept(self, kept):
        begin(kept)
        kept.ask('give memory=old')
        kept.ask('give memory=new')
        kept.kill()
        assert kept.handed() == "[('memory', 'new')]"

    def test_what_is_forgotten_is_closed(self, kept):
        begin(kept)
        kept.ask('give session=one memory=two')
        kept.ask('forget memory')
        kept.kill()
        assert kept.handed() == "[('session', 'one')]"
        files = pathlib.Path(f'/proc/{kept.holder.pid}/fd').iterdir()
        memories = [p for p in files if 'memfd' in os.readlink(p)]
        assert len(memories) == 1

    def test_nothing_is_lost_however_fast_it_dies(self, kept):
        """More deaths, and faster, than a start limit allows."""
        begin(kept)
        kept.ask('give session=one memory=two')
        started = time.monotonic()
        for _ in range(25):
            kept.kill()
            assert kept.handed() == "[('memory', 'two'), ('session', 'one')]"
            kept.ask('ready')
        assert time.monotonic() - started < 25
        kept.log.seek(0)
        assert kept.log.read().count('SIGKILL') == 25

    def test_a_message_of_anybody_else_is_not_obeyed(self, kept):
        begin(kept)
        kept.ask('give memory=a')
        environment = pathlib.Path(f'/proc/{kept.pid}/environ').read_bytes()
        address = next(
            line.partition(b'=')[2]
            for line in environment.split(b'\0')
            if line.startswith(b'NOTIFY_SOCKET=')
        )
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(
                b'FDSTOREREMOVE=1\nFDNAME=memory',
                b'\0' + address.removeprefix(b'@'),
            )
        kept.kill()
        assert kept.handed() == "[('memory', 'a')]"


def renew(kept):
    """A ready program, and one beside it."""
    begin(kept)
    assert kept.ask('give memory=a') == 'True'
    assert kept.ask('wait') == 'waits'
    kept.holder.send_signal(signal.SIGHUP)
    assert kept.handed() == "[('memory', 'a')] beside"


class TestRenewal:
    def test_the_next_one_loads_while_this_one_serves_and_then_is_it(
        self, kept
    ):
        renew(kept)
        first = kept.before[0][0]
        time.sleep(0.1)
        assert command_of(first) == str(PROGRAM), 'it went too early'
        assert kept.ask('loaded') == 'loaded'
        kept.back()
        assert kept.is_gone()
        kept.back()
        assert kept.ask('ready') == 'ready'
        kept.kill()
        assert kept.handed() == "[('memory', 'a')]"

    def test_one_that_cannot_load_leaves_the_other_one_serving(self, kept):
        renew(kept)
        kept.tell('end 1')
        assert kept.is_gone()
        time.sleep(0.1)
        kept.back()
        assert command_of(kept.pid) == str(PROGRAM)
        # And it may be tried again.
        kept.holder.send_signal(signal.SIGHUP)
        assert kept.handed() == "[('memory', 'a')] beside"

    def test_a_death_meanwhile_makes_the_next_one_the_program(self, kept):
        renew(kept)
        kept.back()
        kept.kill()
        assert kept.is_gone()
        kept.back()
        assert kept.ask('ready') == 'ready'
        kept.kill()
        assert kept.handed() == "[('memory', 'a')]"

    def test_one_that_was_handed_something_old_is_not_used(self, kept):
        begin(kept)
        assert kept.ask('give memory=a') == 'True'
        kept.holder.send_signal(signal.SIGHUP)
        assert kept.handed() == "[('memory', 'a')] beside"
        kept.back()
        assert kept.ask('give memory=b') == 'True'
        kept.kill()
        kept.back()
        assert kept.is_gone()
        assert kept.handed() == "[('memory', 'b')]"

    def test_an_end_for_good_ends_both(self, kept):
        renew(kept)
        kept.holder.send_signal(signal.SIGTERM)
        assert kept.holder.wait(10) == 0
        assert kept.is_gone()


class TestEnds:
    def test_an_end_for_good_ends_it(self, kept):
        begin(kept)
        kept.ask('give memory=a')
        kept.tell('end 0')
        assert kept.holder.wait(10) == 0

    def test_any_other_end_starts_it_again(self, kept):
        begin(kept)
        kept.ask('give memory=a')
        for status in (75, 1):
            kept.tell(f'end {status}')
            assert kept.handed() == "[('memory', 'a')]"
            assert kept.ask('ready') == 'ready'

    def test_one_that_never_was_ready_has_failed(self, kept):
        assert kept.handed() == '[]'
        kept.tell('end 3')
        assert kept.holder.wait(10) == 3

    def test_one_that_cannot_resume_is_tried_more_and_more_slowly(self, kept):
        begin(kept)
        kept.ask('give memory=a')
        kept.kill()
        starts = []
        for _ in range(6):
            assert kept.handed() == "[('memory', 'a')]"
            starts.append(time.monotonic())
            kept.tell('end 1')
        gaps = [b - a for a, b in itertools.pairwise(starts)]
        assert gaps[-1] > 0.4, gaps
        assert kept.handed() == "[('memory', 'a')]"

    def test_term_ends_the_program_for_good(self, kept):
        begin(kept)
        kept.ask('give memory=a')
        assert kept.ask('wait') == 'waits'
        kept.holder.send_signal(signal.SIGTERM)
        assert kept.holder.wait(10) == 0

    def test_one_that_is_not_ready_is_renewed_by_its_end(self, kept):
        kept.handed()
        kept.ask('give memory=a')
        assert kept.ask('wait') == 'waits'
        kept.holder.send_signal(signal.SIGHUP)
        assert kept.handed() == "[('memory', 'a')]"

    def test_a_program_that_is_not_there_is_named(self, tmp_path):
        done = subprocess.run(
            [
                *(sys.executable, '-m', 'nova_lazyimage.cmd.holder', '--'),
                str(tmp_path / 'nothing'),
            ],
            env={**os.environ, 'PYTHONPATH': str(ROOT)},
            capture_output=True,
            text=True,
            timeout=20,
        )
        assert done.returncode == 127
        assert 'nothing' in done.stderr
