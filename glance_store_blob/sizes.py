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
"""Sizes that were asked for a moment ago.

When Glance is given a location it asks three times for the size before it
keeps it. The second and third time must be cheap and must not fail for a
passing reason. A version never changes, so a size is wrong only once its blob
is deleted, and then for ``KEPT_SECONDS`` at most.
"""

import threading
import time

KEPT_SECONDS = 5.0
KEPT_MAX = 1024


class RecentSizes:
    """Bytes by location; the oldest go first. Threads: any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sizes: dict[str, tuple[float, int]] = {}

    def get(self, url: str) -> int | None:
        """The size, if it was put a moment ago."""
        with self._lock:
            until, size_bytes = self._sizes.get(url, (0.0, 0))
        return size_bytes if time.monotonic() < until else None

    def put(self, url: str, size_bytes: int) -> None:
        """Keep a size for a moment."""
        with self._lock:
            self._sizes.pop(url, None)
            while len(self._sizes) >= KEPT_MAX:
                del self._sizes[next(iter(self._sizes))]
            self._sizes[url] = (time.monotonic() + KEPT_SECONDS, size_bytes)

    def drop(self, url: str) -> None:
        """Forget a size."""
        with self._lock:
            self._sizes.pop(url, None)
