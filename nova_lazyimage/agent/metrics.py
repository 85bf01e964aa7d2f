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
"""``/metrics``: what the agent counts, for Prometheus.

Read from the engine and the tables at each scrape: nothing is counted twice,
and nothing on the data path knows of Prometheus. A disk's labels are
``server`` and ``disk``.
"""

from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import prometheus_client
from prometheus_client import core
from prometheus_client import registry

from nova_lazyimage.agent import latencies

FETCH_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30)

#: The engine's figures of a histogram, by the bounds in their names.
PAUSES = 'freeze_pauses'
#: Where a chunk may come from.
REFUSING = ('cache', 'peer', 'store')

Source = Callable[[], dict[str, Any]]


class Collector(registry.Collector):
    """Asks for the figures when Prometheus does.

    :param source: ``engine``: the engine's statistics; ``mirrors``: what the
        API tells of each; ``fetcher``, ``commits``: their counts
    """

    def __init__(self, source: Source) -> None:
        self._source = source

    def collect(self) -> Iterator[core.Metric]:
        """Every figure but the histogram."""
        found = self._source()
        yield from self._engine(found['engine'])
        yield self._pauses(found['engine'])
        yield from self._mirrors(found['mirrors'])
        failures = core.CounterMetricFamily(
            'lazyimage_fetch_failures',
            'Fetches that brought no chunk',
            labels=['tier', 'kind'],
        )
        for labels, count in found['failures'].items():
            failures.add_metric(labels, count)
        yield failures
        yield core.CounterMetricFamily(
            'lazyimage_fetch_bytes',
            'Bytes fetched from the store, as stored',
            value=found['fetched_bytes'],
        )
        yield core.GaugeMetricFamily(
            'lazyimage_store_available',
            '0 while the chunk store does not answer',
            value=0 if found['store_away_seconds'] else 1,
        )
        yield core.GaugeMetricFamily(
            'lazyimage_store_away_seconds',
            'How long the chunk store has not answered; 0 if it does',
            value=found['store_away_seconds'],
        )
        yield self._requests(found['latencies'])
        commits = core.CounterMetricFamily(
            'lazyimage_commits', 'COMMITs that ended', labels=['state']
        )
        for state, count in found['commits'].items():
            commits.add_metric([state], count)
        yield commits
        yield core.CounterMetricFamily(
            'lazyimage_commit_bytes',
            'Bytes of dirty chunks that COMMITs went through',
            value=found['uploaded_bytes'],
        )
        yield core.GaugeMetricFamily(
            'lazyimage_releases_pending',
            'Released disks whose blob is still to be deleted',
            value=found['releasing'],
        )
        yield core.CounterMetricFamily(
            'lazyimage_alarms', 'Alarms of the engine', value=found['alarms']
        )

    @staticmethod
    def _pauses(statistics: dict[str, Any]) -> core.Metric:
        bounds = sorted(
            (int(name.removeprefix(f'{PAUSES}_le_').removesuffix('us')), count)
            for name, count in statistics.items()
            if name.startswith(f'{PAUSES}_le_')
        )
        counts = [
            (str(bound / latencies.MICROSECONDS), float(count))
            for bound, count in bounds
        ]
        counts.append(('+Inf', float(statistics.get(f'{PAUSES}_total', 0))))
        family = core.HistogramMetricFamily(
            'lazyimage_freeze_pause_seconds',
            'How long the freezes of COMMITs held writes',
        )
        family.add_metric(
            [],
            counts,
            statistics.get(f'{PAUSES}_microseconds_total', 0)
            / latencies.MICROSECONDS,
        )
        return family

    @staticmethod
    def _requests(histograms: list[dict[str, Any]]) -> core.Metric:
        family = core.HistogramMetricFamily(
            'lazyimage_request_seconds',
            'Time of guests\' requests, by the slowest place they went to',
            labels=['operation', 'source'],
        )
        for histogram in histograms:
            family.add_metric(
                [histogram['operation'], histogram['source']],
                latencies.buckets(histogram),
                histogram['microseconds'] / latencies.MICROSECONDS,
            )
        return family

    @staticmethod
    def _engine(statistics: dict[str, Any]) -> Iterator[core.Metric]:
        refused = core.CounterMetricFamily(
            'lazyimage_chunks_refused',
            'Chunks that were not what their digest names',
            labels=['source'],
        )
        for source in REFUSING:
            name = f'{source}_refused_total'
            refused.add_metric([source], statistics.get(name, 0))
        yield refused
        for name, value in sorted(statistics.items()):
            if not isinstance(value, (int, float)) or PAUSES in name:
                continue
            if name.endswith('_refused_total'):
                continue
            full = f'lazyimage_engine_{name}'
            if name.startswith('cache_'):
                full = f'lazyimage_{name}'
            family: Any = core.GaugeMetricFamily
            if name.endswith('_total'):
                family = core.CounterMetricFamily
            text = f'Of the engine: {name.replace("_", " ")}'
            yield family(full, text, value=value)

    @staticmethod
    def _mirrors(mirrors: list[dict[str, Any]]) -> Iterator[core.Metric]:
        yield core.GaugeMetricFamily(
            'lazyimage_mirrors', 'Disks that are attached', value=len(mirrors)
        )
        yield core.GaugeMetricFamily(
            'lazyimage_mirrors_broken',
            'Disks that could not be exported again',
            value=sum(mirror['state'] == 'broken' for mirror in mirrors),
        )
        for field, text in (
            ('size_bytes', 'Size that the guest sees'),
            ('local_bytes', 'Written since attach'),
            ('dirty_bytes', 'Not yet committed'),
            ('fetched_bytes', 'Fetched for this disk'),
            ('waiting', 'Requests that wait'),
            ('oldest_wait_seconds', 'How long the oldest of them waits'),
        ):
            gauge = core.GaugeMetricFamily(
                f'lazyimage_mirror_{field}', text, labels=['server', 'disk']
            )
            for mirror in mirrors:
                gauge.add_metric(
                    [mirror['instance'], mirror['disk']], mirror[field]
                )
            yield gauge


class Metrics:
    """The figures of one agent, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = prometheus_client.CollectorRegistry()
        self._fetch_seconds = prometheus_client.Histogram(
            'lazyimage_fetch_seconds',
            'Time to fetch a chunk and hand it to the engine',
            ['tier'],
            buckets=FETCH_BUCKETS,
            registry=self._registry,
        )
        self._from_store = self._fetch_seconds.labels('store')

    def observe_fetch(self, seconds: float) -> None:
        """A chunk came from the store."""
        self._from_store.observe(seconds)

    def watch(self, source: Source) -> None:
        """Ask this for everything else."""
        self._registry.register(Collector(source))

    def render(self) -> bytes:
        """The text that Prometheus reads."""
        return prometheus_client.generate_latest(self._registry)

    def serve(self, address: str) -> None:
        """Answer at ``host:port`` as well."""
        host, _, port = address.rpartition(':')
        prometheus_client.start_http_server(
            int(port), host.strip('[]') or '127.0.0.1', self._registry
        )
