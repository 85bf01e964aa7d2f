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
"""Pacing: at most so many bytes a second, on average.

For what runs beside guests for hours, a scrub above all. Bytes are paid for
after they were read, so that what a read costs need not be known before it;
who is ahead of the bound waits for it.

Threads: all of them; together they keep one bound.
"""

import threading
import time
from collections.abc import Callable


class Pace:
    """A bound that all who pay keep together.

    :param bytes_per_second: 0: none
    :param clock: seconds, for tests
    :param sleep: likewise
    """

    def __init__(
        self,
        bytes_per_second: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._bytes_per_second = bytes_per_second
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._paid_until = 0.0

    def pay(self, size_bytes: int) -> None:
        """Wait until these bytes are within the bound."""
        if not self._bytes_per_second:
            return
        now = self._clock()
        with self._lock:
            # What was left of the past is no credit: a burst is no pace.
            start = max(self._paid_until, now)
            self._paid_until = start + size_bytes / self._bytes_per_second
            pause_seconds = self._paid_until - now
        self._sleep(pause_seconds)
