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
"""One run of a bench, from its contenders to the file of its results."""

import pathlib
from collections.abc import Callable

from bench import harness
from bench import reports
from bench import verdicts


def run(
    bench: harness.Bench,
    *,
    work: pathlib.Path,
    results: pathlib.Path,
    rounds: int | None = None,
    tell: Callable[[str], None] = print,
) -> bool:
    """Measure, print, save; whether all goals were met.

    :raises TooFewRounds: before anything is measured, if so few are asked
        for
    """
    rounds = bench.rounds if rounds is None else rounds
    if rounds < bench.rounds_min:
        raise harness.TooFewRounds(
            f'{bench.name}: {rounds} rounds were asked for; it takes '
            f'{bench.rounds_min} to report anything'
        )
    cases = [metric.name for metric in bench.metrics]
    found = harness.measure(
        bench.contenders(work), rounds, cases=cases, tell=tell
    )
    rows = verdicts.evaluate(bench, found)
    tell('')
    tell(reports.table(bench, rows, rounds))
    tell(f'saved as {reports.save(bench, rows, found, results)}')
    return all(row.is_met is not False for row in rows)


def smoke(
    bench: harness.Bench,
    *,
    work: pathlib.Path,
    tell: Callable[[str], None] = print,
) -> None:
    """Run one round and report no figure: that the bench itself works.

    :raises Missing: a contender measured nothing, or nothing above 0
    """
    cases = [metric.name for metric in bench.metrics]
    (found,) = harness.measure(
        bench.contenders(work), 1, cases=cases, tell=tell
    )
    for name, results in found.items():
        figures = {
            k: v for k, v in results.items() if not k.startswith(harness.CPU)
        }
        if not figures or not all(v > 0 for v in figures.values()):
            raise harness.Missing(f'{bench.name}: {name} measured {figures}')
        tell(f'{bench.name}: {name}: {len(figures)} measured')
