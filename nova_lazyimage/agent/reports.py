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
"""Tell the catalog of chunks that no tier has, or has right.

A guest was given an error for such a chunk: its digest is reported, so that
it is listed as bad and the next writer with good bytes overwrites it. A wish
and no promise: whoever fetches never waits for it; what a full queue, a
catalog that stays away or the agent's end takes along is reported again by
the next reader, or found by verify.

Threads: :meth:`Reports.add` by all of them; one thread reports.
"""

import collections
import threading
from collections.abc import Callable
from typing import Any

from oslo_log import log as logging

from lazyblob import exceptions

LOG = logging.getLogger(__name__)

WAITING_MAX = 10_000
PAUSE_SECONDS_MIN = 1.0
PAUSE_SECONDS_MAX = 60.0
_AT_ONCE = 500


class Reports:
    """What is still to be told.

    :param repository: answers the repository
    :param reporter: this host
    """

    def __init__(self, repository: Callable[[], Any], reporter: str) -> None:
        self._repository = repository
        self._reporter = reporter
        self._changed = threading.Condition()
        # Ordered, each digest once.
        self._waiting: collections.OrderedDict[str, None] = (
            collections.OrderedDict()
        )

    def add(self, digest: bytes) -> None:
        """A chunk that its readers were given an error for."""
        with self._changed:
            if len(self._waiting) < WAITING_MAX:
                self._waiting[digest.hex()] = None
                self._changed.notify()

    def run(self, stopping: threading.Event) -> None:
        """Report until the agent stops."""
        pause_seconds = PAUSE_SECONDS_MIN
        while not stopping.is_set():
            with self._changed:
                if not self._waiting:
                    self._changed.wait(PAUSE_SECONDS_MIN)
                some = list(self._waiting)[:_AT_ONCE]
            if not some:
                continue
            try:
                self._repository().catalog.report_bad(some, self._reporter)
            except exceptions.CatalogUnavailable as exc:
                LOG.debug('%d bad chunks are told later: %s', len(some), exc)
                stopping.wait(pause_seconds)
                pause_seconds = min(2 * pause_seconds, PAUSE_SECONDS_MAX)
                continue
            except Exception as exc:
                # A conductor that is too old, say: asking again is vain.
                LOG.warning('%d bad chunks are not told: %s', len(some), exc)
            pause_seconds = PAUSE_SECONDS_MIN
            with self._changed:
                for digest in some:
                    self._waiting.pop(digest, None)
