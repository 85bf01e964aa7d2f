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
"""Descriptors that outlive the agent: its side of the keeper's protocol.

The kernel ends a FUSE session when nobody holds its descriptor any more, so
somebody must hold it while the agent is dead. Who does is the *keeper*: the
service manager, or ``lazyimage-holder`` where there is none. Both speak
systemd's protocol, sd_notify(3) and sd_listen_fds(3), and no other:

============================ ==============================================
the agent says               the keeper
============================ ==============================================
``FDSTORE=1 FDNAME=n``       keeps the descriptors that came with it
``FDSTOREREMOVE=1 FDNAME=n`` closes all that it keeps under that name
``BARRIER=1``                closes the pipe that came with it: all that was
                             said before is done
``READY=1``, ``STOPPING=1``  knows how far the agent is
``X_LAZYIMAGE=waits``        the holder only: tells the predecessor to hand
                             over (SIGHUP)
============================ ==============================================

At each start the keeper hands over what it keeps: descriptors from 3 on,
``LISTEN_FDS`` many for the process ``LISTEN_PID``, named by
``LISTEN_FDNAMES``. It keeps its own copies.

An upgrade under the holder starts the new agent **beside** the old one, told
so by ``LAZYIMAGE_BESIDE`` with the holder's pid, so that guests wait neither
for its start nor, should it fail to, at all. It reads its configuration,
loads, says that it waits, and touches nothing of its predecessor's before it
has the lock of the state directory; until then it ends with the holder.

``FDPOLL=0`` asks the service manager not to drop a session that was aborted:
its successor is to learn of it and to say so. A manager that does not know it
drops it, which the successor takes for a session that is gone.

Crash: a message that was sent is done even if the sender is dead by then.
What is believed to be kept was confirmed by a barrier.

Threads: none of its own; each message is one system call.
"""

import array
import contextlib
import logging
import os
import select
import socket
from collections.abc import Sequence


# The standard library's: it is all the same here, and this module is also
# for programs that start in a moment.
LOG = logging.getLogger(__name__)

FIRST_DESCRIPTOR = 3
BESIDE = 'LAZYIMAGE_BESIDE'
WAITS = 'X_LAZYIMAGE=waits'
# A busy service manager takes its time; nothing is served meanwhile.
BARRIER_SECONDS_MAX = 15.0


def notify(text: str, descriptors: Sequence[int] = ()) -> bool:
    """Tell the keeper or service manager something.

    :param descriptors: go along with the message
    :returns: whether there is one, and it was told
    """
    address = os.environ.get('NOTIFY_SOCKET', '')
    if not address:
        return False
    if address.startswith('@'):
        address = '\0' + address[1:]
    ancillary = []
    if descriptors:
        data = array.array('i', descriptors)
        ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, data))
    try:
        with socket.socket(
            socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
        ) as connection:
            connection.connect(address)
            connection.sendmsg([text.encode()], ancillary)
    except OSError as exc:
        LOG.warning('Cannot tell the service manager "%s": %s', text, exc)
        return False
    return True


def take_descriptors() -> dict[str, int]:
    """What was kept for this process, by name; once.

    Called before anything else opens files, starts threads or processes.
    Two of one name cannot be told apart: none of them is taken.
    """
    environment = {
        name: os.environ.pop(name, '')
        for name in ('LISTEN_PID', 'LISTEN_FDS', 'LISTEN_FDNAMES')
    }
    if environment['LISTEN_PID'] != str(os.getpid()):
        return {}
    try:
        count = int(environment['LISTEN_FDS'])
    except ValueError:
        return {}
    names = environment['LISTEN_FDNAMES'].split(':')
    names += [''] * (count - len(names))
    taken: dict[str, int] = {}
    for descriptor, name in enumerate(names[:count], FIRST_DESCRIPTOR):
        os.set_inheritable(descriptor, False)
        if name in taken or names.count(name) > 1 or not name:
            os.close(descriptor)
        else:
            taken[name] = descriptor
    return taken


def take_beside() -> int:
    """The holder that started this process beside its predecessor; once.

    :returns: its pid; 0: there is no predecessor any more
    """
    pid = os.environ.pop(BESIDE, '')
    return int(pid) if pid.isascii() and pid.isdigit() else 0


class Abandoned(Exception):
    """The holder of an agent that still waits for its predecessor is dead."""


class Keeper:
    """Whoever keeps this agent's descriptors; perhaps nobody.

    :param descriptors: what :func:`take_descriptors` found
    :param beside: what :func:`take_beside` found
    :ivar keeps: whether what it was given outlives this process, as far as
        it said
    """

    def __init__(self, descriptors: dict[str, int], beside: int = 0) -> None:
        self.descriptors = descriptors
        self.keeps = bool(descriptors)
        self._beside = beside

    @property
    def beside_predecessor(self) -> bool:
        """Whether the agent was started while another one serves."""
        return self._beside != 0

    def check(self) -> None:
        """While waiting for the predecessor.

        :raises Abandoned: whoever would keep this agent is gone
        """
        if self._beside and os.getppid() != self._beside:
            raise Abandoned(
                'the holder that started this agent beside another one is '
                'dead; the other one serves on'
            )

    def give(self, descriptors: dict[str, int]) -> bool:
        """Have descriptors kept, in the place of all others of their names.

        Returns when they are; the caller's own stay open.

        :returns: whether somebody keeps them
        """
        for name in descriptors:
            notify(f'FDSTOREREMOVE=1\nFDNAME={name}')
        for name, descriptor in descriptors.items():
            notify(f'FDSTORE=1\nFDPOLL=0\nFDNAME={name}', [descriptor])
        self.keeps = self._settled()
        return self.keeps

    def forget(self, names: Sequence[str]) -> None:
        """Have the descriptors of these names closed, here and there."""
        for name in names:
            notify(f'FDSTOREREMOVE=1\nFDNAME={name}')
            descriptor = self.descriptors.pop(name, None)
            if descriptor is not None:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        self._settled()
        self.keeps = False

    @staticmethod
    def _settled() -> bool:
        """Whether all that was said is done."""
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            told = notify('BARRIER=1', [writing])
            os.close(writing)
            if not told:
                return False
            waiter = select.poll()
            waiter.register(reading, 0)
            return bool(waiter.poll(BARRIER_SECONDS_MAX * 1000))
        finally:
            os.close(reading)
