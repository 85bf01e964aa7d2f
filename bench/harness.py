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
"""Compare contenders fairly: interleaved in rounds, as ratios, with spread.

A machine changes while it is measured. So every round runs every contender
once, in an order drawn anew; a ratio is formed within each round, where both
sides met the same machine; and the median of those ratios is compared with
the goal. From fewer rounds than the bench asks for nothing is reported: the
run ends with ``TooFewRounds``, as it does when a contender fails.

Ratios are improvements, whatever the metric: 2.0 is twice as good as the
baseline, be it half the time or twice the operations.

A bench of many cases asks each contender for one case at a time (``Sampler``):
all who have that case, one right after the other, then the next case. What is
compared is then seconds apart, not minutes.
"""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import platform
import random
import re
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

Measurements = dict[str, float]

CPU = 'cpu_seconds'
ROUNDS_MIN = 3


class TooFewRounds(Exception):
    """Not enough was measured to say anything."""


class Missing(Exception):
    """A program, module or device that the bench needs is not there."""


class Contender(Protocol):
    """One of those compared."""

    name: str

    def prepare(self) -> None:
        """Once, before the first round; nothing of it is measured."""

    def run(self) -> Measurements:
        """One round.

        ``cpu_seconds`` may be among them, for work done in processes that are
        not children; else it is measured here.
        """

    def cleanup(self) -> None:
        """Once, after the last round, also when prepare or run failed."""


@runtime_checkable
class Sampler(Protocol):
    """A contender that is measured case by case; a case is a metric's name."""

    name: str

    def prepare(self) -> None:
        """Once, before the first round; nothing of it is measured."""

    def has(self, case: str) -> bool:
        """Whether it takes part in a case."""

    def sample(self, case: str) -> Measurements:
        """One case: the metric of that name, and ``cpu_seconds`` if known."""

    def cleanup(self) -> None:
        """Once, after the last round, also when prepare or sample failed."""


@dataclasses.dataclass(frozen=True)
class Metric:
    """What is measured, and which way is better."""

    name: str
    unit: str
    better: str = 'lower'  # or 'higher'

    def improvement(self, value: float, baseline: float) -> float:
        """How many times better the value is than the baseline."""
        better, worse = (
            (value, baseline) if self.better == 'higher' else (baseline, value)
        )
        return better / worse if worse else math.inf


@dataclasses.dataclass(frozen=True)
class Goal:
    """At least so many times as good as another, the baseline by default.

    :param at_most: instead, of a metric that no baseline can stand for: the
        largest median, whatever the others measure
    """

    metric: str
    contender: str
    at_least: float = 0.0
    against: str = ''
    at_most: float | None = None


@dataclasses.dataclass(frozen=True)
class Bench:
    """A comparison: who, what is measured, against whom, with which goals.

    :param contenders: makes them; gets the folder they may use
    :param rounds: how many are run unless more are asked for; also the least
        from which anything is reported
    :param cpu_unit: of ``cpu_seconds``, where a contender answers another
    """

    name: str
    summary: str
    metrics: Sequence[Metric]
    baseline: str
    contenders: Callable[[pathlib.Path], Sequence[Contender | Sampler]]
    goals: Sequence[Goal] = ()
    rounds: int = 5
    cpu_unit: str = 's'

    def only(self, pattern: str) -> 'Bench':
        """The same with the metrics whose names the pattern finds.

        :raises Missing: it finds none
        """
        metrics = [m for m in self.metrics if re.search(pattern, m.name)]
        if not metrics:
            raise Missing(f'{self.name}: no case matches "{pattern}"')
        names = {metric.name for metric in metrics}
        goals = [goal for goal in self.goals if goal.metric in names]
        return dataclasses.replace(self, metrics=metrics, goals=goals)


@dataclasses.dataclass(frozen=True)
class Row:
    """What the rounds say of one metric of one contender."""

    metric: Metric
    contender: str
    median: float
    spread: float  # (largest - smallest) / median
    ratio: float | None  # None for the baseline itself
    cpu_seconds: float
    goal: float | None = None
    against: str = ''  # whom the ratio compares with; '': the baseline
    ratio_spread: float = 0.0  # of the rounds' ratios, largest - smallest
    at_most: float | None = None

    @property
    def is_met(self) -> bool | None:
        if self.at_most is not None:
            return self.median <= self.at_most
        if self.goal is None or self.ratio is None:
            return None
        return self.ratio >= self.goal

    @property
    def wanted(self) -> str:
        """The goal, for people."""
        if self.at_most is not None:
            return f'<= {_figure(self.at_most)}'
        return '' if self.goal is None else f'>= {self.goal:g}'


Rounds = list[dict[str, Measurements]]


def _cpu_seconds() -> float:
    used = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        used += usage.ru_utime + usage.ru_stime
    return used


def _cpu_key(metric: str) -> str:
    return f'{CPU} of {metric}'


def _sample_round(
    samplers: Sequence[Sampler], cases: Sequence[str], order: random.Random
) -> dict[str, Measurements]:
    results: dict[str, Measurements] = {s.name: {} for s in samplers}
    for case in order.sample(list(cases), len(cases)):
        able = [sampler for sampler in samplers if sampler.has(case)]
        for sampler in order.sample(able, len(able)):
            found = dict(sampler.sample(case))
            if CPU in found:
                found[_cpu_key(case)] = found.pop(CPU)
            results[sampler.name].update(found)
    for result in results.values():
        result[CPU] = 0.0
    return results


def measure(
    contenders: Sequence[Contender | Sampler],
    rounds: int,
    *,
    cases: Sequence[str] = (),
    tell: Callable[[str], None] = print,
    order: random.Random | None = None,
) -> Rounds:
    """Run every contender once a round, in an order drawn for each round.

    Samplers are run case by case instead, cases and contenders in orders
    drawn for each round. Whoever was prepared is cleaned up, whatever happens.
    """
    order = order or random.Random()
    found: Rounds = []
    with contextlib.ExitStack() as stack:
        contenders = [
            contender
            for contender in contenders
            if not isinstance(contender, Sampler)
            or any(map(contender.has, cases))
        ]
        for contender in contenders:
            tell(f'preparing {contender.name}')
            stack.callback(contender.cleanup)
            contender.prepare()
        samplers = [c for c in contenders if isinstance(c, Sampler)]
        if samplers and len(samplers) < len(contenders):
            raise TypeError('all contenders are samplers, or none')
        for number in range(1, rounds + 1):
            if samplers:
                start = time.monotonic()
                found.append(_sample_round(samplers, cases, order))
                tell(
                    f'round {number} of {rounds}: {len(cases)} cases, '
                    f'{time.monotonic() - start:.1f} s'
                )
                continue
            results = {}
            for contender in order.sample(list(contenders), len(contenders)):
                cpu, start = _cpu_seconds(), time.monotonic()
                assert not isinstance(contender, Sampler)
                measurements = dict(contender.run())
                measurements.setdefault(CPU, _cpu_seconds() - cpu)
                results[contender.name] = measurements
                tell(
                    f'round {number} of {rounds}: {contender.name}, '
                    f'{time.monotonic() - start:.1f} s'
                )
            found.append(results)
    return found


def evaluate(bench: Bench, rounds: Rounds) -> list[Row]:
    """The rows of the table.

    :raises TooFewRounds: nothing may be said from so little
    """
    if len(rounds) < max(bench.rounds, ROUNDS_MIN):
        raise TooFewRounds(
            f'{bench.name}: {len(rounds)} rounds were measured; it takes '
            f'{max(bench.rounds, ROUNDS_MIN)} to report anything'
        )
    goals = {
        (goal.metric, goal.contender, goal.against or bench.baseline): goal
        for goal in bench.goals
    }
    names = list(rounds[0])
    rows = []
    for metric in bench.metrics:
        for name in [bench.baseline] + sorted(set(names) - {bench.baseline}):
            values = [
                result[name][metric.name]
                for result in rounds
                if metric.name in result[name]
            ]
            if not values:
                continue  # this contender has no such thing
            if len(values) != len(rounds):
                raise TooFewRounds(
                    f'{bench.name}: {name} measured "{metric.name}" in only '
                    f'{len(values)} of {len(rounds)} rounds'
                )
            rows += [
                _row(bench, rounds, metric, name, against, values, goals)
                for against in _compared_with(bench, metric, name)
            ]
    if goals:
        raise TooFewRounds(
            f'{bench.name}: nothing was measured for the goals '
            + ', '.join(f'{metric} of {name}' for metric, name, _ in goals)
        )
    return rows


def _compared_with(bench: Bench, metric: Metric, name: str) -> list[str]:
    """Whom a contender is compared with: the baseline, then by its goals."""
    others = [
        goal.against
        for goal in bench.goals
        if (goal.metric, goal.contender) == (metric.name, name)
        and goal.against not in ('', bench.baseline)
    ]
    return [bench.baseline, *others]


def _row(
    bench: Bench,
    rounds: Rounds,
    metric: Metric,
    name: str,
    against: str,
    values: Sequence[float],
    goals: dict[tuple[str, str, str], Goal],
) -> Row:
    median = statistics.median(values)
    ratios = []
    if name != against and all(
        metric.name in result[against] for result in rounds
    ):
        ratios = [
            metric.improvement(
                result[name][metric.name], result[against][metric.name]
            )
            for result in rounds
        ]
    goal = goals.pop((metric.name, name, against), None) if ratios else None
    return Row(
        metric,
        name,
        median,
        (max(values) - min(values)) / median if median else 0.0,
        statistics.median(ratios) if ratios else None,
        statistics.median(
            result[name].get(_cpu_key(metric.name), result[name][CPU])
            for result in rounds
        ),
        goal.at_least if goal and goal.at_most is None else None,
        '' if against == bench.baseline else against,
        max(ratios) - min(ratios) if ratios else 0.0,
        goal.at_most if goal else None,
    )


def _figure(value: float) -> str:
    return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.3g}'


def table(bench: Bench, rows: Iterable[Row], rounds: int) -> str:
    """The rows, for people."""
    lines = [
        (
            'metric',
            'contender',
            'median',
            'spread',
            f'CPU {bench.cpu_unit}',
            'ratio',
            'spread',
            'goal',
            '',
        )
    ]
    for row in rows:
        verdict = {None: '', True: 'met', False: 'NOT MET'}[row.is_met]
        lines.append(
            (
                f'{row.metric.name} [{row.metric.unit}]',
                f'  against {row.against}' if row.against else row.contender,
                '' if row.against else _figure(row.median),
                '' if row.against else f'{row.spread:.0%}',
                '' if row.against else f'{row.cpu_seconds:.2f}',
                '-' if row.ratio is None else f'{row.ratio:.2f}',
                '' if row.ratio is None else f'{row.ratio_spread:.2f}',
                row.wanted,
                verdict,
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = []
    for line in lines:
        cells = [
            cell.ljust(width) if index < 2 else cell.rjust(width)
            for index, (cell, width) in enumerate(
                zip(line, widths, strict=True)
            )
        ]
        text.append('  '.join(cells).rstrip())
    return '\n'.join(
        [
            f'{bench.name}: {bench.summary}',
            f'{rounds} interleaved rounds; ratio: times as good as '
            f'{bench.baseline}',
            '',
            text[0],
            '-' * len(text[0]),
            *text[1:],
        ]
    )


def _machine() -> dict[str, Any]:
    model = ''
    with contextlib.suppress(OSError):
        for line in pathlib.Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith('model name'):
                model = line.partition(':')[2].strip()
                break
    pages = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    return {
        'processor': model,
        'processors': len(os.sched_getaffinity(0)),
        'memory_bytes': pages,
        'kernel': platform.release(),
        'python': platform.python_version(),
    }


def _commit() -> str:
    with contextlib.suppress(OSError):
        done = subprocess.run(
            ['git', 'describe', '--always', '--dirty', '--abbrev=12'],
            cwd=pathlib.Path(__file__).parent,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()
    return ''


def save(
    bench: Bench, rows: Iterable[Row], rounds: Rounds, folder: pathlib.Path
) -> pathlib.Path:
    """Write ``<name>.json`` with all that was measured; its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f'{bench.name}.json'
    content = {
        'format': 1,
        'name': bench.name,
        'summary': bench.summary,
        'baseline': bench.baseline,
        'commit': os.environ.get('LAZYIMAGE_COMMIT') or _commit(),
        'time': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()),
        'machine': _machine(),
        'rows': [
            {
                'metric': row.metric.name,
                'unit': row.metric.unit,
                'better': row.metric.better,
                'contender': row.contender,
                'median': row.median,
                'spread': row.spread,
                'ratio': row.ratio,
                'cpu': row.cpu_seconds,
                'cpu_unit': bench.cpu_unit,
                'against': row.against or bench.baseline,
                'ratio_spread': row.ratio_spread,
                'goal': row.goal,
                'at_most': row.at_most,
                'met': row.is_met,
            }
            for row in rows
        ],
        'rounds': rounds,
    }
    temporary = path.with_suffix('.json.tmp')
    temporary.write_text(json.dumps(content, indent=1) + '\n')
    temporary.replace(path)
    return path


def run(
    bench: Bench,
    *,
    work: pathlib.Path,
    results: pathlib.Path,
    rounds: int | None = None,
    tell: Callable[[str], None] = print,
) -> bool:
    """Measure, print, save; whether all goals were met.

    :raises TooFewRounds: before anything is measured, if so few are asked for
    """
    rounds = bench.rounds if rounds is None else rounds
    if rounds < max(bench.rounds, ROUNDS_MIN):
        raise TooFewRounds(
            f'{bench.name}: {rounds} rounds were asked for; it takes '
            f'{max(bench.rounds, ROUNDS_MIN)} to report anything'
        )
    cases = [metric.name for metric in bench.metrics]
    found = measure(bench.contenders(work), rounds, cases=cases, tell=tell)
    rows = evaluate(bench, found)
    tell('')
    tell(table(bench, rows, rounds))
    tell(f'saved as {save(bench, rows, found, results)}')
    return all(row.is_met is not False for row in rows)


def smoke(
    bench: Bench,
    *,
    work: pathlib.Path,
    tell: Callable[[str], None] = print,
) -> None:
    """Run one round and report no figure: that the bench itself works.

    :raises Missing: a contender measured nothing, or nothing above 0
    """
    cases = [metric.name for metric in bench.metrics]
    (found,) = measure(bench.contenders(work), 1, cases=cases, tell=tell)
    for name, results in found.items():
        figures = {k: v for k, v in results.items() if not k.startswith(CPU)}
        if not figures or not all(v > 0 for v in figures.values()):
            raise Missing(f'{bench.name}: {name} measured {figures}')
        tell(f'{bench.name}: {name}: {len(figures)} measured')
