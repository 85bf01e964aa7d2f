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
"""The FUSE session: whose it is, how a successor takes it over.

A guest's open file belongs to the session, so the session has to live as long
as guests do, and the agent does not. Its two descriptors, ``/dev/fuse`` and
the memory that the engine notes requests in, are with the keeper (keeper.py)
before the first disk can be attached. What happens when:

======================================= ======================================
the agent dies or ends                  guests, and the next agent
======================================= ======================================
before the mount                        nothing is there
mounted, not both descriptors kept      no disk was ever attached there: the
                                        session is ended, a new one made
kept; disks come and go; serving        requests wait; it resumes, attaches
                                        all of the journal, then serves
resumed, not all attached, not serving  as before: nothing was answered yet
in a COMMIT                             as serving; the COMMIT has failed
                                        (contract 17)
handing over                            as serving; COMMITs were ended, what
                                        was written before is flushed
ending for good, mounted                as serving: nothing is taken back yet
ending for good, unmounted              the session ends, the next agent makes
                                        a new one
the keeper dies                         guests go on; the agent's own end is
                                        the session's
======================================= ======================================

A session is **not** resumed, but ended and said so, if its descriptors are
incomplete, of another boot or session id, or torn; if nothing is mounted any
more where the disks belong; or if the live map of one of its disks is gone
(contract 4): its guest would read what it had overwritten. Guests that had it
open get errors, which is better.

Nothing here looks at the mount itself while nobody serves it: such a look
would wait for ourselves. The table of mounts is read instead. Whether a mount
that was left over is dead only a look can tell; the engine takes it with
patience for some seconds, and a start that would wait is refused.

Threads: the main thread's alone.
"""

import errno
from collections.abc import Callable
from typing import Any

from oslo_log import log as logging

from lazyblob import exceptions
from nova_lazyimage.agent import checks
from nova_lazyimage.agent import host
from nova_lazyimage.agent import keeper
from nova_lazyimage.agent import state

LOG = logging.getLogger(__name__)

KIND = 'fuse.lazyimage'
DEVICE = 'lazyimage-device'
MEMORY = 'lazyimage-memory'
NAMES = (DEVICE, MEMORY)


class Lost(Exception):
    """The session must not be resumed; the message says why."""


class Session:
    """The session of one agent.

    :param engine: serves it
    :param held: has its descriptors, or had its predecessor's
    :ivar resumed: it is a predecessor's
    """

    def __init__(
        self, engine: Any, held: keeper.Keeper, folders: state.Folders
    ) -> None:
        self._engine = engine
        self._keeper = held
        self._mount_root = folders.mount_root
        self.resumed = False

    @property
    def kept(self) -> bool:
        """Whether it outlives this process."""
        return self._keeper.keeps

    # Start

    def resume(self, attach_all: Callable[[], None]) -> bool:
        """Serve the predecessor's session, if there is one that may be.

        :param attach_all: attaches every disk of the journal; raises Lost
            when one of them is not what its guest saw
        :returns: False: there is none (any more); mount anew
        :raises OSError: EBUSY: another process serves it
        """
        given = self._keeper.descriptors
        if not given:
            return False
        try:
            self._take_over()
            attach_all()
        except Lost as exc:
            LOG.error(
                'The session of the disks below %s is ended: %s. Whoever has '
                'a disk open there gets errors',
                self._mount_root,
                exc,
            )
            self._end()
            return False
        self._engine.serve()
        self._keeper.keeps = True
        LOG.info('Resumed the session below %s', self._mount_root)
        return True

    def _take_over(self) -> None:
        given = self._keeper.descriptors
        missing = [name for name in NAMES if name not in given]
        if missing:
            raise Lost(f'its descriptor "{missing[0]}" was not kept')
        if checks.mount_kind(self._mount_root) != KIND:
            raise Lost('it is not mounted there any more')
        try:
            self._engine.resume(
                str(self._mount_root), given[DEVICE], given[MEMORY]
            )
        except ValueError as exc:
            raise Lost(str(exc)) from exc
        except OSError as exc:
            if exc.errno == errno.EBUSY:
                raise
            raise Lost(str(exc)) from exc
        # Both are the engine's now; the keeper has copies.
        given.clear()
        self.resumed = True

    def _end(self) -> None:
        """Whoever waits in it gets an error; the mount goes.

        First the keeper's copies: one that dies from here on leaves a
        successor that finds none.
        """
        self._keeper.forget(NAMES)
        if self.resumed:
            self._engine.abandon_session()
            self.resumed = False
        else:
            host.abort_mount(str(self._mount_root))

    def mount(self) -> None:
        """Begin a session and have it kept.

        :raises OSError: EBUSY: another process serves a mount there
        :raises InvalidConfiguration: a session there waits for another agent
        """
        try:
            self._engine.mount(str(self._mount_root))
        except TimeoutError as exc:
            raise exceptions.InvalidConfiguration(
                f'the mount at "{self._mount_root}" waits for an agent, and '
                'its descriptors were not handed to this one; start the '
                'agent by whoever keeps them, or end the mount by "umount '
                '--force"'
            ) from exc
        device, memory = self._engine.session_descriptors()
        if not self._keeper.give({DEVICE: device, MEMORY: memory}):
            LOG.warning(
                'Nobody keeps the descriptors of the disks below %s: if this '
                'process dies, guests get errors; start it by systemd, with '
                'FileDescriptorStoreMax, or by lazyimage-holder',
                self._mount_root,
            )

    # Stop

    def hand_over(self) -> None:
        """Stop serving; guests wait for the successor."""
        self._engine.hand_over()

    def close(self) -> None:
        """Take the mount away, for good; the engine has stopped."""
        try:
            self._engine.unmount()
        except OSError as exc:
            LOG.info('The mount stays for the next agent: %s', exc)
        if self.kept:
            self._keeper.forget(NAMES)
