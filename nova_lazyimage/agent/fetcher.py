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
"""Bring the chunks that mirrors miss from the store to the engine.

The engine decides what is fetched next and for whom; these threads only carry
it. Some of them carry nothing but what a guest waits for, so that background
work never holds one up (contract 13).

What a failure means (contract 12): the store says *not found*, twice: the
chunk is missing, and its readers get EIO; its bytes do not match the digest,
twice: corrupt, likewise; anything else, whatever it is, is the way to the
store, and is tried again until it answers.

A store that answers nothing at all fails no fetch: a watch raises the alarm
for it.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

from oslo_log import log as logging

from lazyblob import exceptions

LOG = logging.getLogger(__name__)

WAIT_SECONDS = 1.0
RECHECK_SECONDS = 0.5
PAUSE_SECONDS_MIN = 0.2
PAUSE_SECONDS_MAX = 1.0
REPEAT_SECONDS = 60.0


class Alarm:
    """The store is away: said when it starts, now and then, when it ends."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._away = False
        self._since = 0.0
        self._said = 0.0
        self._failures = 0
        self._answered = time.monotonic()

    @property
    def raised(self) -> bool:
        """Whether the store is away."""
        with self._mutex:
            return self._away

    @property
    def seconds(self) -> float:
        """For how long it has been away; 0 if it is not."""
        with self._mutex:
            return time.monotonic() - self._since if self._away else 0.0

    def _raise(self, since: float, why: object) -> None:
        """With the mutex held."""
        now = time.monotonic()
        if not self._away:
            self._away, self._since = True, since
        elif now - self._said < REPEAT_SECONDS:
            return
        self._said = now
        LOG.warning(
            'The chunk store does not answer; reads of what is not on this '
            'host wait (%d failures within %.0f s): %s',
            self._failures,
            now - self._since,
            why,
        )

    def overdue(self, since: float, limit_seconds: float) -> None:
        """A fetch that began then has not ended."""
        now = time.monotonic()
        with self._mutex:
            if now - max(since, self._answered) >= limit_seconds:
                self._raise(since, f'no answer for {now - since:.0f} s')

    def failed(self, exc: BaseException) -> float:
        """A fetch failed; the pause before the next one, in seconds."""
        with self._mutex:
            self._failures += 1
            failures = self._failures
            self._raise(time.monotonic(), exc)
        return min(
            PAUSE_SECONDS_MIN * 2 ** min(failures - 1, 8), PAUSE_SECONDS_MAX
        )

    def answered(self) -> None:
        """A fetch succeeded."""
        with self._mutex:
            self._answered = time.monotonic()
            if not self._away:
                return
            self._away = False
            seconds = self._answered - self._since
            failures, self._failures = self._failures, 0
        LOG.warning(
            'The chunk store answers again after %.1f s and %d failures',
            seconds,
            failures,
        )


class Fetcher:
    """The threads that fetch.

    :param alarm_seconds: how long a store may be silent
    :param observe: told the seconds of each fetch
    """

    def __init__(
        self,
        engine: Any,
        repository: Callable[[], Any],
        *,
        threads: int,
        guest_threads: int,
        alarm_seconds: float = 5.0,
        observe: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self._engine = engine
        self._repository = repository
        self._observe = observe
        self._stopping = threading.Event()
        self.alarm = Alarm()
        self.failures = {'transport': 0, 'missing': 0, 'corrupt': 0}
        self.fetched_bytes = 0
        self._mutex = threading.Lock()
        self._alarm_seconds = alarm_seconds
        self._under_way: dict[bytes, float] = {}
        self._threads = [
            threading.Thread(
                target=self._run,
                args=(number < guest_threads,),
                name=f'fetch-{number}',
                daemon=True,
            )
            for number in range(threads)
        ]
        self._threads.append(
            threading.Thread(
                target=self._watch, name='fetch-watch', daemon=True
            )
        )

    def start(self) -> None:
        """Begin to fetch."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Fetch nothing more; a fetch under way is not waited for."""
        self._stopping.set()

    def _watch(self) -> None:
        while not self._stopping.wait(min(WAIT_SECONDS, self._alarm_seconds)):
            with self._mutex:
                started = min(self._under_way.values(), default=None)
            if started is not None:
                self.alarm.overdue(started, self._alarm_seconds)

    def _fetch(self, digest: bytes) -> bytes:
        with self._mutex:
            self._under_way[digest] = time.monotonic()
        try:
            data: bytes = self._repository().fetch(digest)
            return data
        finally:
            with self._mutex:
                self._under_way.pop(digest, None)

    def _run(self, guests_only: bool) -> None:
        while not self._stopping.is_set():
            try:
                wanted = self._engine.next_fetch(guests_only, WAIT_SECONDS)
                if wanted is not None:
                    self._carry(bytes(wanted['digest']))
            except Exception:
                LOG.exception('A fetch thread goes on after an error')
                self._stopping.wait(PAUSE_SECONDS_MAX)

    def _carry(self, digest: bytes) -> None:
        pause_seconds = 0.0
        for last in (False, True):
            try:
                started = time.monotonic()
                data = self._fetch(digest)
                self._engine.fetched(digest, data)
            except exceptions.NotFound as exc:
                kind, failure = 'missing', str(exc)
            except (exceptions.ChunkCorrupt, ValueError) as exc:
                # The engine's own ChunkCorrupt is a ValueError.
                kind, failure = 'corrupt', str(exc)
            except Exception as exc:
                kind, failure = 'transport', f'{type(exc).__name__}: {exc}'
                pause_seconds = self.alarm.failed(exc)
                last = True
            else:
                self._observe(time.monotonic() - started)
                with self._mutex:
                    self.fetched_bytes += len(data)
                self.alarm.answered()
                return
            if last:
                break
            self._stopping.wait(RECHECK_SECONDS)
        self._fail(digest, kind, failure)
        self._stopping.wait(pause_seconds)

    def _fail(self, digest: bytes, kind: str, failure: str) -> None:
        with self._mutex:
            self.failures[kind] += 1
        if kind != 'transport':
            LOG.error(
                'Chunk %s is %s in the store; its readers get an error: %s',
                digest.hex(),
                kind,
                failure,
            )
        with contextlib.suppress(ValueError):
            self._engine.fetch_failed(digest, kind, failure)
