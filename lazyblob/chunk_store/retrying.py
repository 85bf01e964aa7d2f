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
"""Wait out the passing failures of a chunk store.

Every remote store says "try again" now and then. obstore would repeat by
itself, but cannot be seen doing it, nor stopped, nor does it repeat a create
whose answer was lost; so it is told not to, and repeating lives here, once.

Repeating is safe because an object never changes: a put whose answer was lost
may be sent again, and finds its own object. Only what the store itself calls
passing, :class:`~lazyblob.exceptions.TemporaryStoreError`, is repeated, for a
bounded time, after pauses that double and are jittered, so that hosts do not
come back in step. :meth:`Patience.stop` ends every pause at once.

What is repeated is told: the first at once, then how many there were at most
once a minute, then that it is over.

Threads: one instance serves them all; no lock is held while it waits.
"""

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from lazyblob import exceptions

LOG = logging.getLogger(__name__)
T = TypeVar('T')

PAUSE_SECONDS_MIN = 0.1
PAUSE_SECONDS_MAX = 5.0
WINDOW_SECONDS = 60.0


class Rate:
    """Says how many operations had to be repeated, and how seldom it can.

    :param shown: the store, as it may be logged
    """

    def __init__(
        self,
        shown: str,
        *,
        window_seconds: float = WINDOW_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._shown = shown
        self._window_seconds = window_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._is_told = False
        self._since = 0.0
        self._operations = 0
        self._repeats = 0

    def repeated(self, exc: BaseException) -> None:
        """An operation failed and will be tried again."""
        with self._lock:
            now = self._clock()
            self._repeats += 1
            if not self._is_told:
                self._is_told, self._since = True, now
                self._operations, self._repeats = 0, 0
                LOG.warning('Repeating what failed: %s', exc)
            elif now - self._since >= self._window_seconds:
                self._tell(now, exc)

    def succeeded(self) -> None:
        """An operation succeeded, whether at once or not."""
        # Nothing to keep count of: not worth the lock.
        if not self._is_told:
            return
        with self._lock:
            now = self._clock()
            self._operations += 1
            if now - self._since < self._window_seconds or not self._is_told:
                return
            if self._repeats:
                self._tell(now, None)
            else:
                self._is_told = False
                LOG.warning('"%s" answers without repeating', self._shown)

    def _tell(self, now: float, exc: BaseException | None) -> None:
        """With the lock held."""
        LOG.warning(
            '"%s": %d repeats and %d successes within %.0f s%s',
            self._shown,
            self._repeats,
            self._operations,
            now - self._since,
            f'; the last: {exc}' if exc else '',
        )
        self._since, self._operations, self._repeats = now, 0, 0


class Patience:
    """Repeats operations of one store.

    :param retry_seconds: no attempt begins later than so long after the
        first one began; 0: one attempt
    """

    def __init__(self, shown: str, retry_seconds: float) -> None:
        self._retry_seconds = retry_seconds
        self._rate = Rate(shown)
        self._stopping = threading.Event()

    def repeat(self, operation: Callable[[], T]) -> T:
        """The operation's answer.

        :raises TemporaryStoreError: the last one, once patience is spent
        """
        begin = time.monotonic()
        pause_seconds = PAUSE_SECONDS_MIN
        attempts = 0
        while True:
            attempts += 1
            try:
                answer = operation()
            except exceptions.TemporaryStoreError as exc:
                failure = exc
            else:
                self._rate.succeeded()
                return answer
            # Jittered between half and all of it.
            jittered = pause_seconds * random.uniform(0.5, 1.0)  # noqa: S311
            left = begin + self._retry_seconds - time.monotonic()
            if jittered > left or self._stopping.is_set():
                break
            self._rate.repeated(failure)
            if self._stopping.wait(jittered):
                break
            pause_seconds = min(2 * pause_seconds, PAUSE_SECONDS_MAX)
        if attempts == 1:
            raise failure
        raise exceptions.TemporaryStoreError(
            f'{failure} ({attempts} attempts in '
            f'{time.monotonic() - begin:.0f} s)'
        ) from failure

    def stop(self) -> None:
        """Repeat nothing any more; whoever waits gets its failure now."""
        self._stopping.set()
