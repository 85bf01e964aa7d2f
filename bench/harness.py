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
import math
import pathlib
import random
import re
import resource
import time
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

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

    @property
    def rounds_min(self) -> int:
        """From fewer nothing is reported."""
        return max(self.rounds, ROUNDS_MIN)

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


Rounds = list[dict[str, Measurements]]


def _cpu_seconds() -> float:
    used = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        used += usage.ru_utime + usage.ru_stime
    return used


def cpu_key(metric: str) -> str:
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
                found[cpu_key(case)] = found.pop(CPU)
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
