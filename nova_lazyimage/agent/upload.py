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

The guests' share of the host is what remains: the pool's threads bound the
processors that COMMITs take, and are nice, and one bandwidth bounds what all
of them read from deltas, compress and send. They are not of the idle class:
who holds the interpreter's lock and gets no processor would stop the threads
that fetch what a guest waits for.

A store that is away for a while is waited for, within bounds: giving up costs
a repeated COMMIT, waiting costs the guest's copies before write.
"""

import concurrent.futures
import dataclasses
import os
import threading
import time
from typing import Any

from oslo_log import log as logging

from lazyblob import exceptions

LOG = logging.getLogger(__name__)

PATIENCE_SECONDS = 60.0
PAUSE_SECONDS_MIN = 0.2
PAUSE_SECONDS_MAX = 5.0
NICENESS = 10


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
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


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


class Uploader:
    """The pool.

    :param threads: chunks that go up at once
    :param bytes_per_second: of the disks, read for all COMMITs; 0: unbounded
    """

    def __init__(self, threads: int, bytes_per_second: int = 0) -> None:
        self._threads = threads
        self._bandwidth = Bandwidth(bytes_per_second)
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
        data = job.sealed.read(chunk)
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

    def stop(self) -> None:
        """Begin no more chunks."""
        self._executor.shutdown(wait=False, cancel_futures=True)
