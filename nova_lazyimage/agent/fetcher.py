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

Tiers are asked in order, the chunk store last. What a failure means (contract
12): every tier says *not found*, or has bytes that do not match the digest,
and says so again at a second look: the chunk is missing, or corrupt, and its
readers get EIO. Anything else, whatever it is and in whichever tier, is the
way to it, and is tried again until it answers. What arrives wrong is refused,
counted by its source, and told by the engine; of what is larger than such a
chunk can be, no more is read than that.

A store that answers nothing at all fails no fetch: a watch raises the alarm
for it.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any, NamedTuple

from oslo_log import log as logging

from lazyblob import exceptions

LOG = logging.getLogger(__name__)

WAIT_SECONDS = 1.0
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


class Tier(NamedTuple):
    """Somewhere a chunk object may be.

    :param source: ``peer`` or ``store``, in metrics and alarms
    :param fetch: by digest and the chunk's size in bytes.
        :raises NotFound: it is confirmed absent
        :raises ChunkCorrupt: it is more than a chunk of that size
    """

    source: str
    fetch: Callable[[bytes, int], bytes]


class Fetcher:
    """The threads that fetch.

    :param alarm_seconds: how long a store may be silent
    :param tiers: in the order to ask them; the chunk store is the last
    :param observe: told the seconds of each fetch
    :param report: told the digest that no tier has, whose readers got EIO
    """

    def __init__(
        self,
        engine: Any,
        tiers: Sequence[Tier],
        *,
        threads: int,
        guest_threads: int,
        alarm_seconds: float = 5.0,
        observe: Callable[[float], None] = lambda seconds: None,
        report: Callable[[bytes], None] = lambda digest: None,
    ) -> None:
        self._engine = engine
        self._tiers = tuple(tiers)
        self._observe = observe
        self._report = report
        self._stopping = threading.Event()
        self.alarm = Alarm()
        self.failures = {
            (tier.source, kind): 0
            for tier in self._tiers
            for kind in ('transport', 'missing', 'corrupt')
        }
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

    def _fetch(self, tier: Tier, digest: bytes, size_bytes: int) -> bytes:
        if tier is not self._tiers[-1]:
            return tier.fetch(digest, size_bytes)
        with self._mutex:
            self._under_way[digest] = time.monotonic()
        try:
            return tier.fetch(digest, size_bytes)
        finally:
            with self._mutex:
                self._under_way.pop(digest, None)

    def _run(self, guests_only: bool) -> None:
        while not self._stopping.is_set():
            try:
                wanted = self._engine.next_fetch(guests_only, WAIT_SECONDS)
                if wanted is not None:
                    self._carry(
                        bytes(wanted['digest']), wanted['chunk_size_bytes']
                    )
            except Exception:
                LOG.exception('A fetch thread goes on after an error')
                self._stopping.wait(PAUSE_SECONDS_MAX)

    def _carry(self, digest: bytes, size_bytes: int) -> None:
        """Ask one tier after the other.

        The second look at what all of them miss, or have wrong, is the
        engine's: it hands the chunk out once more, after a pause.
        """
        failed: dict[str, str] = {}
        pause_seconds = 0.0
        for tier in self._tiers:
            started = time.monotonic()
            try:
                data = self._fetch(tier, digest, size_bytes)
                self._engine.fetched(digest, data, tier.source)
            except exceptions.NotFound as exc:
                kind, failure = 'missing', str(exc)
            except exceptions.ChunkCorrupt as exc:
                kind, failure = 'corrupt', str(exc)
                self._engine.refused(digest, failure, tier.source)
            except ValueError as exc:
                # The engine refused it, and has said so.
                kind, failure = 'corrupt', str(exc)
            except Exception as exc:
                kind, failure = 'transport', f'{type(exc).__name__}: {exc}'
                if tier is self._tiers[-1]:
                    pause_seconds = self.alarm.failed(exc)
            else:
                self._observe(time.monotonic() - started)
                with self._mutex:
                    self.fetched_bytes += len(data)
                if tier is self._tiers[-1]:
                    self.alarm.answered()
                return
            failed[kind] = f'{tier.source}: {failure}'
            with self._mutex:
                self.failures[tier.source, kind] += 1
        self._fail(digest, failed)
        self._stopping.wait(pause_seconds)

    def _fail(self, digest: bytes, failed: dict[str, str]) -> None:
        # A tier that was not reached may have it: that is no end (contract
        # 12). Of the others the last has the last word.
        kind = 'transport' if 'transport' in failed else list(failed)[-1]
        if kind != 'transport':
            LOG.error(
                'Chunk %s is %s in every tier; if it still is at a second '
                'look, its readers get an error: %s',
                digest.hex(),
                kind,
                failed[kind],
            )
        with contextlib.suppress(ValueError):
            if self._engine.fetch_failed(digest, kind, failed[kind]):
                self._report(digest)
