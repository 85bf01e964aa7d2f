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
"""Freezes that are held: many disks at one instant, then a COMMIT of each.

A client freezes every disk of a group, under a token of its choice, and when
all of them stand still seals each by a COMMIT that names the token. While a
disk is frozen its guest's writes wait and its reads do not. So the freeze
ends by itself when its time is up: the engine sees to that, however busy or
stuck this process's threads are. A COMMIT that names a token whose freeze has
ended is refused, for the other disks of its group may have moved on.

Nothing of a freeze is durable: an agent that dies or restarts has thawed.
"""

import time
from typing import Any

from oslo_log import log as logging

from nova_lazyimage.agent import errors
from nova_lazyimage.agent import journal
from nova_lazyimage.agent import mirrors

LOG = logging.getLogger(__name__)

SECONDS = 5
# A guest's driver gives a request up after 30 seconds or so.
SECONDS_MAX = 20


class Freeze:
    """A freeze of one mirror, whether it holds or has ended."""

    def __init__(self, token: str, held: Any, seconds: float) -> None:
        self.token = token
        self.held = held
        self.seconds = seconds
        self.until = time.monotonic() + seconds

    def describe(self) -> dict[str, Any]:
        """What the interface tells of it."""
        is_held = self.held.is_held
        left_seconds = max(0.0, self.until - time.monotonic())
        return {
            'token': self.token,
            'state': 'frozen' if is_held else 'thawed',
            'seconds_left': round(left_seconds, 3) if is_held else 0.0,
        }


def freeze(
    live: mirrors.Live, token: str, seconds: float
) -> tuple[dict[str, Any], bool]:
    """Hold a mirror's writes until it is sealed or thawed, or time is up.

    :returns: the freeze's state, and whether this call began it
    :raises Conflict: another freeze, or a COMMIT, of this mirror is under way
    :raises FreezeExpired: this token's freeze has ended, or a write under
        way took longer than ``seconds``
    """
    mirror = live.serving()
    with live.lock:
        record = live.record
        if record.state is not journal.State.ATTACHED:
            raise errors.Conflict('this disk is being released')
        known = live.freeze
        if known is not None and known.token == token:
            if not known.held.is_held:
                raise _expired(live, token)
            return known.describe(), False
        if record.commit is not None or live.job is not None:
            raise errors.Conflict(
                f'a commit of disk "{record.disk}" of server '
                f'"{record.instance}" is under way; wait for it'
            )
        try:
            held = mirror.hold(float(seconds))
        except BlockingIOError as exc:
            raise errors.Conflict(
                f'disk "{record.disk}" of server "{record.instance}" is '
                'frozen under another token'
            ) from exc
        except TimeoutError as exc:
            raise errors.FreezeExpired(
                f'a write of disk "{record.disk}" of server '
                f'"{record.instance}" took longer than the {seconds:g} s of '
                'the freeze; see whether its storage is overloaded'
            ) from exc
        live.freeze = Freeze(token, held, seconds)
        return live.freeze.describe(), True


def thaw(live: mirrors.Live, token: str) -> dict[str, Any]:
    """Let the guest go on; a freeze that has ended is fine."""
    with live.lock:
        known = live.freeze
        if known is None or known.token != token:
            return {'token': token, 'state': 'thawed', 'seconds_left': 0.0}
        known.held.thaw()
        return known.describe()


def seal(live: mirrors.Live, token: str) -> Any:
    """The engine's sealed mirror, as it was when the freeze began.

    The caller holds the mirror's lock.

    :raises FreezeExpired: it holds no more
    """
    known = live.freeze
    if known is None or known.token != token:
        raise _expired(live, token)
    try:
        return known.held.seal()
    except TimeoutError as exc:
        raise _expired(live, token) from exc


def _expired(live: mirrors.Live, token: str) -> errors.FreezeExpired:
    record, known = live.record, live.freeze
    why = 'was never frozen under it, or the agent was restarted since'
    if known is not None and known.token == token:
        why = f'was thawed, sealed, or held for all of its {known.seconds:g} s'
    return errors.FreezeExpired(
        f'the freeze "{token}" has ended: disk "{record.disk}" of server '
        f'"{record.instance}" {why}; freeze again, under a new token'
    )
