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
"""``lazyimage-holder``: keeps an agent's descriptors and starts it again.

Where no service manager does it. It speaks systemd's protocol (the agent's
keeper.py has the table), so that the agent knows one kind of keeper only::

    lazyimage-holder -- lazyimage-agent --config-file /etc/...

=================================== =======================================
what happens                        what it does
=================================== =======================================
the agent ends with 0               ends with 0: it was an end for good
it ends otherwise, was ready before starts it again at once
it ends before it was ready, and    starts it again, after a pause that
something is kept                   grows to two seconds
it ends before it was ever ready,   ends with its status: it cannot start
and nothing is kept
SIGTERM, SIGINT                     SIGINT to the agent: an end for good
SIGHUP                              starts the next agent, from the files of
                                    a new release if there is one, beside
                                    this one
that one waits                      SIGHUP to the agent: it hands over
that one ends before it waits       nothing: the agent serves on
the agent ends meanwhile, however   the next one is the agent; if it was
                                    handed what is not kept any more, it is
                                    killed and another one started
its own death                       the agent serves on, kept by nobody; one
                                    that waits beside it ends
=================================== =======================================

What it keeps it drops only when the agent asks it to or when it ends. It
touches no file, least of all below the mount: a look at a mount whose server
is dead would wait for the very agent that it has to start. It is small, needs
the standard library alone, and one thread.

Only the agents themselves are listened to, by the kernel's word of who sent a
message. What the agent said before it died is heard before it is started
again.
"""

import array
import contextlib
import os
import secrets
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Sequence

FIRST_DESCRIPTOR = 3
DESCRIPTORS_MAX = 64
MESSAGE_BYTES_MAX = 4096
PAUSE_SECONDS_MIN = 0.05
PAUSE_SECONDS_MAX = 2.0
# From the kernel's struct ucred: pid, uid, gid.
CREDENTIALS = struct.Struct('3i')
BESIDE = 'LAZYIMAGE_BESIDE'


class Store:
    """Descriptors that are kept, each with its name.

    :ivar changes: how often they were others than before
    """

    def __init__(self) -> None:
        self.kept: list[tuple[str, int]] = []
        self.changes = 0

    def add(self, name: str, descriptors: Sequence[int]) -> None:
        """Keep them; too many are closed."""
        self.changes += 1
        for descriptor in descriptors:
            if len(self.kept) == DESCRIPTORS_MAX:
                say(f'more than {DESCRIPTORS_MAX} descriptors; "{name}" goes')
                os.close(descriptor)
            else:
                self.kept.append((name, descriptor))

    def remove(self, name: str) -> None:
        """Close all of one name."""
        self.changes += any(kept == name for kept, _ in self.kept)
        for kept, descriptor in self.kept:
            if kept == name:
                os.close(descriptor)
        self.kept = [pair for pair in self.kept if pair[0] != name]


class Agent:
    """A process.

    :param pid: a child's
    :param changes: of the store, when it was handed what was kept
    :ivar ready: it said that it serves
    :ivar waits: it said that it waits for its predecessor's end
    """

    def __init__(self, pid: int, changes: int) -> None:
        self.pid = pid
        self.changes = changes
        self.ready = self.waits = False
        self.descriptor = os.pidfd_open(pid)

    def tell(self, number: int) -> None:
        """Send a signal."""
        # Not reaped yet, so the number is nobody else's.
        os.kill(self.pid, number)

    def reap(self) -> int:
        """How it ended, as subprocess tells it."""
        os.close(self.descriptor)
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)


class Holder:
    """One agent and what is kept for it.

    :param command: the agent's program and arguments
    """

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._store = Store()
        self._agent: Agent | None = None
        self._next: Agent | None = None
        self._was_ready = False
        self._ending = False
        self._pause_seconds = 0.0
        self._notices = socket.socket(
            socket.AF_UNIX,
            socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
        )
        self._notices.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        # Abstract: no file that anybody would have to clean up.
        self._address = f'lazyimage-holder-{secrets.token_hex(16)}'
        self._notices.bind(f'\0{self._address}')
        self._signals, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)

    def run(self) -> int:
        """Keep one agent alive until it ended for good; its status."""
        while True:
            if self._agent is None:
                self._agent = self._start()
            status = self._watch(self._agent)
            if self._ending:
                self._kill_next()
                return status if status >= 0 else 1
            if self._succeed(status):
                continue
            if status == 0:
                return 0
            if not self._was_ready and not self._store.kept:
                return status if status > 0 else 128 - status
            self._rest(self._agent, status)
            self._agent = None
            if self._ending:
                return 0

    def _succeed(self, status: int) -> bool:
        """The agent has ended; whether there is another one to be it."""
        found = self._next
        if found is None:
            return False
        if found.changes == self._store.changes:
            say(f'the agent ended ({describe(status)}); the next one goes on')
            self._agent, self._next = found, None
        else:
            say(f'the agent ended ({describe(status)}); started anew')
            self._kill_next()
            self._agent = None
        self._pause_seconds = 0.0
        return True

    def _kill_next(self) -> None:
        found, self._next = self._next, None
        if found is not None:
            found.tell(signal.SIGKILL)
            found.reap()

    def _start(self, *, beside: bool = False) -> Agent:
        # One thread: the child may do more than exec.
        pid = os.fork()
        if pid == 0:
            try:
                self._become_agent(os.getppid() if beside else 0)
            except BaseException as exc:
                say(f'cannot run "{self._command[0]}": {exc}')
            finally:
                os._exit(127)
        return Agent(pid, self._store.changes)

    def _become_agent(self, beside: int) -> None:
        """In the child: hand over what is kept, become the agent.

        :param beside: the holder's pid, if there is an agent; else 0
        """
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        count = len(self._store.kept)
        # Out of the way first: one may stand where another has to go.
        high = [
            os.dup2(descriptor, FIRST_DESCRIPTOR + count + 256 + index)
            for index, (_, descriptor) in enumerate(self._store.kept)
        ]
        for index, descriptor in enumerate(high):
            os.dup2(descriptor, FIRST_DESCRIPTOR + index)
            os.close(descriptor)
        environment = {
            **os.environ,
            'NOTIFY_SOCKET': f'@{self._address}',
            'FDSTORE': str(DESCRIPTORS_MAX),
        }
        for name in ('LISTEN_PID', 'LISTEN_FDS', 'LISTEN_FDNAMES', BESIDE):
            environment.pop(name, None)
        if beside:
            environment[BESIDE] = str(beside)
        if count:
            environment['LISTEN_PID'] = str(os.getpid())
            environment['LISTEN_FDS'] = str(count)
            names = [name for name, _ in self._store.kept]
            environment['LISTEN_FDNAMES'] = ':'.join(names)
        command = self._command
        os.execvpe(command[0], command, environment)  # noqa: S606

    def _watch(self, agent: Agent) -> int:
        """Serve the agent until it ended; how."""
        while True:
            poll = select.poll()
            poll.register(self._notices.fileno(), select.POLLIN)
            poll.register(self._signals, select.POLLIN)
            poll.register(agent.descriptor, select.POLLIN)
            if self._next is not None:
                poll.register(self._next.descriptor, select.POLLIN)
            found = {descriptor for descriptor, _ in poll.poll()}
            # First: the last words of one that has ended meanwhile.
            self._listen()
            if self._next is not None and self._next.descriptor in found:
                status = self._next.reap()
                self._next = None
                say(f'the next agent ended ({describe(status)})')
            self._obey()
            if agent.descriptor in found:
                self._listen()
                return agent.reap()

    def _rest(self, agent: Agent, status: int) -> None:
        """Between two agents."""
        if agent.ready:
            self._pause_seconds = 0.0
        kept = len(self._store.kept)
        say(
            f'the agent ended ({describe(status)}); started again'
            + (
                f' in {self._pause_seconds:.2f} s'
                if self._pause_seconds
                else ''
            )
            + f', {kept} descriptors are kept for it'
        )
        self._agent = None
        until = time.monotonic() + self._pause_seconds
        poll = select.poll()
        poll.register(self._signals, select.POLLIN)
        while not self._ending:
            left = until - time.monotonic()
            if left <= 0:
                break
            poll.poll(left * 1000)
            self._obey()
        if not agent.ready:
            self._pause_seconds = min(
                max(2 * self._pause_seconds, PAUSE_SECONDS_MIN),
                PAUSE_SECONDS_MAX,
            )

    def _obey(self) -> None:
        """Do what signals told."""
        with contextlib.suppress(BlockingIOError):
            for number in os.read(self._signals, 64):
                if number == signal.SIGHUP:
                    self._renew()
                elif number in (signal.SIGTERM, signal.SIGINT):
                    self._ending = True
                    if self._agent is not None:
                        self._agent.tell(signal.SIGINT)

    def _renew(self) -> None:
        """Start the next agent; that will wait for this one's end."""
        if self._agent is None or self._ending:
            return
        if not self._agent.ready:
            # No guest is served by it.
            self._agent.tell(signal.SIGHUP)
        elif self._next is None or not self._next.waits:
            self._kill_next()
            self._next = self._start(beside=True)

    def _listen(self) -> None:
        """Take every message that has come."""
        space = socket.CMSG_SPACE(CREDENTIALS.size) + socket.CMSG_SPACE(
            DESCRIPTORS_MAX * array.array('i').itemsize
        )
        while True:
            try:
                text, ancillary, flags, _ = self._notices.recvmsg(
                    MESSAGE_BYTES_MAX, space, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            descriptors = array.array('i')
            sender = 0
            for level, kind, data in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    whole = len(data) - len(data) % descriptors.itemsize
                    descriptors.frombytes(data[:whole])
                elif kind == socket.SCM_CREDENTIALS:
                    sender = CREDENTIALS.unpack(data)[0]
            agent = None
            if not flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC):
                for known in (self._agent, self._next):
                    if known is not None and known.pid == sender:
                        agent = known
            if agent is None:
                for descriptor in descriptors:
                    os.close(descriptor)
                continue
            lines = text.decode('utf-8', 'replace').splitlines()
            said = dict(line.split('=', 1) for line in lines if '=' in line)
            before = self._store.changes
            self._take(agent, said, list(descriptors))
            # Of what it did itself it knows.
            agent.changes += self._store.changes - before

    def _take(
        self, agent: Agent, said: dict[str, str], descriptors: list[int]
    ) -> None:
        """One message; what is not kept of it is closed, a barrier too."""
        name = said.get('FDNAME', 'stored')
        if not name.isascii() or not name.isprintable() or ':' in name:
            name = 'stored'
        if said.get('READY') == '1':
            agent.ready = self._was_ready = True
        if (
            said.get('X_LAZYIMAGE') == 'waits'
            and agent is self._next
            and not agent.waits
        ):
            agent.waits = True
            assert self._agent is not None  # noqa: S101
            self._agent.tell(signal.SIGHUP)
        if said.get('FDSTOREREMOVE') == '1':
            self._store.remove(name)
        elif said.get('FDSTORE') == '1':
            self._store.add(name, descriptors)
            return
        for descriptor in descriptors:
            os.close(descriptor)


def describe(status: int) -> str:
    """How a process ended, in words."""
    if status >= 0:
        return f'status {status}'
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f'signal {-status}'


def say(text: str) -> None:
    """To whoever reads the log."""
    with contextlib.suppress(OSError):
        os.write(2, f'lazyimage-holder: {text}\n'.encode())


def main(argv: list[str] | None = None) -> int:
    """Keep the agent that the command line names."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ['--']:
        arguments = arguments[1:]
    elif arguments and arguments[0].startswith('-'):
        arguments = []
    if not arguments:
        print('usage: lazyimage-holder -- AGENT [ARGUMENT...]')
        return 2
    return Holder(arguments).run()


if __name__ == '__main__':
    sys.exit(main())
