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

A store that is away for a while is waited for, within bounds: giving up costs
a repeated COMMIT, waiting costs the guest's copies before write.
"""

import concurrent.futures
import dataclasses
import threading
import time
from typing import Any

from oslo_log import log as logging

from lazyblob import exceptions
from nova_lazyimage.agent import errors

LOG = logging.getLogger(__name__)

PATIENCE_SECONDS = 60.0
PAUSE_SECONDS_MIN = 0.2
PAUSE_SECONDS_MAX = 5.0


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


class Uploader:
    """The pool.

    :param threads: chunks that go up at once
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._mutex = threading.Lock()
        self._executor = concurrent.futures.ThreadPoolExecutor(
            threads, thread_name_prefix='upload'
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
        self._check(job)

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

    @staticmethod
    def _check(job: Any) -> None:
        if job.cancelled.is_set():
            raise errors.Cancelled(
                'the disk was released, or the agent stopped, during the '
                'commit'
            )

    def _put(self, job: Any, commit: Any, chunk: int) -> None:
        self._check(job)
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
                self._check(job)
            pause_seconds = min(2 * pause_seconds, PAUSE_SECONDS_MAX)
        job.sealed.uploaded(chunk)
        with self._mutex:
            job.committed_bytes += len(data)

    def stop(self) -> None:
        """Begin no more chunks."""
        self._executor.shutdown(wait=False, cancel_futures=True)
