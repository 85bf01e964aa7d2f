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
"""Bring a sealed mirror's chunks to the store.

All COMMITs of a host share one pool; each has at most a few chunks in it, so
that memory is bounded by the pool and a large COMMIT does not starve a small
one. A chunk loses the engine's protection as soon as the store has it.

Guests go first. While they read and write, wherever on the host, each thread
of the pool works a share of its time only and pauses for the rest
(:class:`Share`); what counts is its processor time and the time that the disk
takes to read a chunk, so it is the slower the busier the disk is, and the
time that a store takes to answer is pause already. Beside that the threads
are nice, and wake up without interrupting anybody (``SCHED_BATCH``), and one
bandwidth bounds what all of them read from deltas, compress and send. They
are not of the idle class: who holds the interpreter's lock and gets no
processor would stop the threads that fetch what a guest waits for.

A store that is away for a while is waited for, within bounds: giving up costs
a repeated COMMIT, waiting costs the guest's copies before write.
"""

import concurrent.futures
import dataclasses
import math
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from oslo_log import log as logging

from lazyblob import exceptions

LOG = logging.getLogger(__name__)

PATIENCE_SECONDS = 60.0
PAUSE_SECONDS_MIN = 0.2
PAUSE_SECONDS_MAX = 5.0
NICENESS = 10
# Guests that ask for less are not busy.
BUSY_REQUESTS_PER_SECOND = 50.0
LOOK_SECONDS = 0.1
# A read that takes longer waited for a chunk of the base.
READ_SECONDS_MAX = 0.1


def plain(statistics: Any) -> dict[str, Any]:
    """A commit's counters as JSON."""
    if dataclasses.is_dataclass(statistics) and not isinstance(
        statistics, type
    ):
        statistics = dataclasses.asdict(statistics)
    return {
        key: value
        for key, value in dict(statistics).items()
        if isinstance(value, (int, float, str, dict))
    }


def be_nice() -> None:
    """Let guests' requests go first; this thread only (Linux)."""
    thread = threading.get_native_id()
    os.setpriority(os.PRIO_PROCESS, thread, NICENESS)
    os.sched_setscheduler(thread, os.SCHED_BATCH, os.sched_param(0))


class Bandwidth:
    """A bound that all who take of it keep together.

    :param bytes_per_second: 0: none
    """

    def __init__(self, bytes_per_second: int) -> None:
        self._bytes_per_second = bytes_per_second
        self._mutex = threading.Lock()
        self._free_at = 0.0

    def take(self, size_bytes: int, cancelled: threading.Event) -> None:
        """Wait until these bytes are within the bound, or cancelled."""
        if not self._bytes_per_second:
            return
        now = time.monotonic()
        with self._mutex:
            start = max(self._free_at, now)
            self._free_at = start + size_bytes / self._bytes_per_second
        if start > now:
            cancelled.wait(start - now)


class Share:
    """How much of its time a thread works while guests are busy.

    :param percent: 100: all of it
    :param requests: what guests have asked for so far
    """

    def __init__(self, percent: int, requests: Callable[[], int]) -> None:
        self._share = percent / 100
        self._requests = requests
        self._mutex = threading.Lock()
        self._looked_at = -math.inf
        self._seen = 0
        self._busy = False

    def _are_busy(self) -> bool:
        now = time.monotonic()
        with self._mutex:
            seconds = now - self._looked_at
            if seconds < LOOK_SECONDS:
                return self._busy
            seen = self._requests()
            # Of a look that is long ago one learns nothing.
            self._busy = (
                seconds > 10 * LOOK_SECONDS
                or seen - self._seen > BUSY_REQUESTS_PER_SECOND * seconds
            )
            self._looked_at, self._seen = now, seen
            return self._busy

    def pause(
        self,
        worked_seconds: float,
        took_seconds: float,
        cancelled: threading.Event,
    ) -> None:
        """Wait as long as this work is owed, or until cancelled.

        :param took_seconds: from its begin to now, its waits included
        """
        if self._share < 1 and self._are_busy():
            cancelled.wait(
                max(0.0, worked_seconds / self._share - took_seconds)
            )


class Uploader:
    """The pool.

    :param threads: chunks that go up at once
    :param bytes_per_second: of the disks, read for all COMMITs; 0: unbounded
    :param share: of their time while guests are busy; None: all of it
    """

    def __init__(
        self,
        threads: int,
        bytes_per_second: int = 0,
        share: Share | None = None,
    ) -> None:
        self._threads = threads
        self._bandwidth = Bandwidth(bytes_per_second)
        self._share = share
        self._mutex = threading.Lock()
        self._executor = concurrent.futures.ThreadPoolExecutor(
            threads, thread_name_prefix='upload', initializer=be_nice
        )

    def run(self, job: Any, commit: Any) -> None:
        """Put every chunk of a COMMIT; the first failure ends it."""
        chunks = iter(job.sealed.chunks)
        pending: set[concurrent.futures.Future[None]] = set()
        try:
            for chunk in chunks:
                if len(pending) >= 2 * self._threads:
                    pending = self._collect(pending)
                if job.cancelled.is_set():
                    break
                pending.add(
                    self._executor.submit(self._put, job, commit, chunk)
                )
            while pending:
                pending = self._collect(pending)
        except BaseException:
            job.cancelled.set()
            raise
        finally:
            for future in pending:
                future.cancel()
            concurrent.futures.wait(pending)
        job.check()

    @staticmethod
    def _collect(
        pending: set[concurrent.futures.Future[None]],
    ) -> set[concurrent.futures.Future[None]]:
        done, pending = concurrent.futures.wait(
            pending, return_when=concurrent.futures.FIRST_COMPLETED
        )
        for future in done:
            future.result()
        return pending

    def _put(self, job: Any, commit: Any, chunk: int) -> None:
        chunk_bytes = job.live.record.chunk_size_bytes
        self._bandwidth.take(chunk_bytes, job.cancelled)
        job.check()
        started, cpu_seconds = time.monotonic(), -time.thread_time()
        data = job.sealed.read(chunk)
        read_seconds = min(time.monotonic() - started, READ_SECONDS_MAX)
        until = time.monotonic() + PATIENCE_SECONDS
        pause_seconds = PAUSE_SECONDS_MIN
        while True:
            try:
                commit.put(chunk, data)
                break
            except exceptions.TemporaryStoreError as exc:
                if time.monotonic() > until:
                    raise
                LOG.debug('Chunk %d waits for the store: %s', chunk, exc)
            if job.cancelled.wait(pause_seconds):
                job.check()
            pause_seconds = min(2 * pause_seconds, PAUSE_SECONDS_MAX)
        job.sealed.uploaded(chunk)
        with self._mutex:
            job.committed_bytes += len(data)
        if self._share is not None:
            cpu_seconds += time.thread_time()
            took_seconds = time.monotonic() - started
            self._share.pause(
                read_seconds + cpu_seconds, took_seconds, job.cancelled
            )

    def stop(self) -> None:
        """Begin no more chunks."""
        self._executor.shutdown(wait=False, cancel_futures=True)
