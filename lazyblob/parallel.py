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
"""Work for a few threads, a bounded number of items under way."""

import collections
import concurrent.futures
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar('T')

_QUEUED_PER_THREAD = 2


def each(
    work: Callable[[T], object],
    items: Iterable[T],
    *,
    threads: int,
    name: str,
    done: Callable[[T], object] | None = None,
) -> None:
    """Work on every item; the first failure ends it and is raised.

    Items are taken by the caller's thread, as there is room for them.

    :param name: of the threads
    :param done: called after each, in their order, by the caller's thread
    """
    waiting: collections.deque[tuple[T, concurrent.futures.Future[object]]] = (
        collections.deque()
    )

    def wait() -> None:
        item, future = waiting.popleft()
        future.result()
        if done is not None:
            done(item)

    pool = concurrent.futures.ThreadPoolExecutor(
        threads, thread_name_prefix=name
    )
    try:
        for item in items:
            if len(waiting) >= threads * (1 + _QUEUED_PER_THREAD):
                wait()
            waiting.append((item, pool.submit(work, item)))
        while waiting:
            wait()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
