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
"""What the engine measures of requests, for people, Prometheus and JSON.

The engine counts in microseconds by fixed bounds, each twice the one before;
a quantile is therefore the upper bound of the bucket that it falls into.
"""

from collections.abc import Sequence
from typing import Any

MICROSECONDS = 1_000_000
#: As the engine has them: 16 microseconds to 67 seconds.
BOUNDS_MICROSECONDS = tuple(16 << n for n in range(23))
BOUNDS_SECONDS = tuple(bound / MICROSECONDS for bound in BOUNDS_MICROSECONDS)


def summary(status: dict[str, Any]) -> dict[str, Any]:
    """What every listing says of the requests of a mirror.

    :param status: the engine's; empty while nothing is served
    """
    reads = status.get('reads_total', 0)
    fetched = min(status.get('reads_fetched_total', 0), reads)
    return {
        'reads': reads,
        'writes': status.get('writes_total', 0),
        'hit_rate': round(1 - fetched / reads, 4) if reads else None,
        'waiting': status.get('parked_now', 0),
        'oldest_wait_seconds': status.get('oldest_wait_milliseconds', 0)
        / 1000,
    }


def quantile(counts: Sequence[int], share: float) -> float | None:
    """Seconds within which this share of the requests was answered.

    None of no requests, and if it took longer than every bound.
    """
    total = sum(counts)
    seen = 0
    for bound, count in zip(BOUNDS_SECONDS, counts, strict=False):
        seen += count
        if total and seen >= share * total:
            return bound
    return None


def plain(histograms: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The histograms that counted anything, with figures for people."""
    found = []
    for histogram in histograms:
        counts = list(histogram['counts'])
        total = sum(counts)
        if not total:
            continue
        found.append(
            {
                'operation': histogram['operation'],
                'source': histogram['source'],
                'requests': total,
                'mean_seconds': round(
                    histogram['microseconds'] / total / MICROSECONDS, 6
                ),
                'p50_seconds': quantile(counts, 0.5),
                'p99_seconds': quantile(counts, 0.99),
                'counts': counts,
            }
        )
    return found


def waits(mirror: Any, count_max: int) -> list[dict[str, Any]]:
    """Who waits for what, the oldest first."""
    return [
        {
            'operation': wait['operation'],
            'offset': wait['offset'],
            'bytes': wait['bytes'],
            'chunk': wait['chunk'],
            'reason': wait['reason'],
            'seconds': wait['milliseconds'] / 1000,
        }
        for wait in mirror.waits(count_max)
    ]


def buckets(histogram: dict[str, Any]) -> list[tuple[str, float]]:
    """Cumulative, with bounds in seconds, as Prometheus wants them."""
    found = []
    total = 0
    for bound, count in zip(
        (*map(str, BOUNDS_SECONDS), '+Inf'), histogram['counts'], strict=True
    ):
        total += count
        found.append((bound, float(total)))
    return found
