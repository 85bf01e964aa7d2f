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
"""What the rounds of a bench say: medians, ratios, goals met or not.

Nothing is measured and nothing printed here, so that the rules by which a
goal counts as met can be tested with made-up rounds.
"""

import dataclasses
import statistics
from collections.abc import Sequence

from bench import harness


@dataclasses.dataclass(frozen=True)
class Row:
    """What the rounds say of one metric of one contender."""

    metric: harness.Metric
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


def evaluate(bench: harness.Bench, rounds: harness.Rounds) -> list[Row]:
    """The rows of the table.

    :raises TooFewRounds: nothing may be said from so little
    """
    if len(rounds) < bench.rounds_min:
        raise harness.TooFewRounds(
            f'{bench.name}: {len(rounds)} rounds were measured; it takes '
            f'{bench.rounds_min} to report anything'
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
                raise harness.TooFewRounds(
                    f'{bench.name}: {name} measured "{metric.name}" in only '
                    f'{len(values)} of {len(rounds)} rounds'
                )
            rows += [
                _row(bench, rounds, metric, name, against, values, goals)
                for against in _compared_with(bench, metric, name)
            ]
    if goals:
        raise harness.TooFewRounds(
            f'{bench.name}: nothing was measured for the goals '
            + ', '.join(f'{metric} of {name}' for metric, name, _ in goals)
        )
    return rows


def _compared_with(
    bench: harness.Bench, metric: harness.Metric, name: str
) -> list[str]:
    """Whom a contender is compared with: the baseline, then by its goals."""
    others = [
        goal.against
        for goal in bench.goals
        if (goal.metric, goal.contender) == (metric.name, name)
        and goal.against not in ('', bench.baseline)
    ]
    return [bench.baseline, *others]


def _row(
    bench: harness.Bench,
    rounds: harness.Rounds,
    metric: harness.Metric,
    name: str,
    against: str,
    values: Sequence[float],
    goals: dict[tuple[str, str, str], harness.Goal],
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
    key = metric.name, name, against
    goal = goals.get(key)
    # An upper bound needs nobody to be compared with.
    if goal is not None and (ratios or goal.at_most is not None):
        del goals[key]
    else:
        goal = None
    return Row(
        metric,
        name,
        median,
        (max(values) - min(values)) / median if median else 0.0,
        statistics.median(ratios) if ratios else None,
        statistics.median(
            result[name].get(
                harness.cpu_key(metric.name), result[name][harness.CPU]
            )
            for result in rounds
        ),
        goal.at_least if goal and goal.at_most is None else None,
        '' if against == bench.baseline else against,
        max(ratios) - min(ratios) if ratios else 0.0,
        goal.at_most if goal else None,
    )
