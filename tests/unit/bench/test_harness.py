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
"""The harness compares fairly and refuses to say what it does not know."""

import json
import pathlib
import random

import pytest

from bench import harness
from bench import reports
from bench import runs
from bench import verdicts

SECONDS = harness.Metric('time', 's')
SPEED = harness.Metric('speed', 'op/s', 'higher')


class Contender:
    """Answers given measurements, one a round, and notes what is called."""

    def __init__(self, name, *measurements, calls=None):
        self.name = name
        self.measurements = list(measurements)
        self.calls = calls if calls is not None else []

    def prepare(self):
        self.calls.append((self.name, 'prepare'))

    def run(self):
        self.calls.append((self.name, 'run'))
        value = self.measurements.pop(0)
        if isinstance(value, Exception):
            raise value
        return value

    def cleanup(self):
        self.calls.append((self.name, 'cleanup'))


def bench(*contenders, metrics=(SECONDS,), goals=(), rounds=3):
    return harness.Bench(
        'sample',
        'a sample',
        metrics,
        'old',
        lambda work: contenders,
        goals,
        rounds,
    )


def times(*seconds):
    return [{'time': value, 'cpu_seconds': 0.5} for value in seconds]


class TestRounds:
    def test_contenders_are_interleaved(self):
        calls = []
        pair = [
            Contender(name, *times(1, 1, 1), calls=calls)
            for name in ('old', 'new')
        ]
        harness.measure(pair, 3, tell=lambda line: None)
        ran = [name for name, what in calls if what == 'run']
        for number in range(3):
            assert set(ran[2 * number : 2 * number + 2]) == {'old', 'new'}

    def test_the_order_is_drawn_for_each_round(self):
        calls = []
        pair = [
            Contender(name, *times(*[1] * 20), calls=calls)
            for name in ('old', 'new')
        ]
        harness.measure(
            pair, 20, tell=lambda line: None, order=random.Random(1)
        )
        ran = [name for name, what in calls if what == 'run']
        assert {ran[2 * number] for number in range(20)} == {'old', 'new'}

    def test_a_failing_contender_ends_the_run_and_all_are_cleaned_up(self):
        calls = []
        pair = [
            Contender('old', *times(1, 1), calls=calls),
            Contender('new', OSError('gone'), calls=calls),
        ]
        with pytest.raises(OSError, match='gone'):
            harness.measure(pair, 2, tell=lambda line: None)
        assert {('old', 'cleanup'), ('new', 'cleanup')} <= set(calls)

    def test_cpu_time_of_children_is_counted(self):
        class Busy(Contender):
            def run(self):
                import subprocess
                import sys

                subprocess.run(
                    [sys.executable, '-c', 'sum(range(3_000_000))'], check=True
                )
                return {'time': 1.0}

        (found,) = harness.measure([Busy('old')], 1, tell=lambda line: None)
        assert found['old']['cpu_seconds'] > 0


class TestTable:
    def rows(self, old, new, metric=SECONDS, **options):
        rounds = [
            {
                'old': {metric.name: a, 'cpu_seconds': 1.0},
                'new': {metric.name: b, 'cpu_seconds': 2.0},
            }
            for a, b in zip(old, new, strict=True)
        ]
        return verdicts.evaluate(bench(metrics=(metric,), **options), rounds)

    def test_half_the_time_is_twice_as_good(self):
        old, new = self.rows([10, 10, 10], [5, 5, 5])
        assert old.ratio is None
        assert new.ratio == 2

    def test_twice_the_speed_is_twice_as_good(self):
        _, new = self.rows([10, 10, 10], [20, 20, 20], SPEED)
        assert new.ratio == 2

    def test_a_ratio_is_formed_within_its_round(self):
        """A machine that slows down threefold changes no ratio."""
        _, new = self.rows([10, 20, 30], [5, 10, 15])
        assert new.ratio == 2
        assert new.spread == 1

    def test_a_goal_is_met_or_not(self):
        goal = harness.Goal('time', 'new', 2.0)
        _, new = self.rows([10] * 3, [5] * 3, goals=[goal])
        assert new.is_met is True
        _, new = self.rows([10] * 3, [6] * 3, goals=[goal])
        assert new.is_met is False

    def test_too_few_rounds_are_not_evaluated(self):
        with pytest.raises(harness.TooFewRounds, match='it takes 3'):
            self.rows([10, 10], [5, 5])

    def test_a_goal_that_nothing_was_measured_for_is_refused(self):
        goal = harness.Goal('speed', 'new', 2.0)
        with pytest.raises(harness.TooFewRounds, match='speed of new'):
            self.rows([10] * 3, [5] * 3, goals=[goal])

    def test_what_is_missing_in_a_round_is_refused(self):
        rounds = [{'old': row} for row in times(1, 1, 1)]
        del rounds[1]['old']['time']
        with pytest.raises(harness.TooFewRounds, match='2 of 3'):
            verdicts.evaluate(bench(), rounds)

    @pytest.mark.parametrize(('seconds', 'met'), [(5, True), (7, False)])
    def test_a_limit_asks_nothing_of_the_baseline(self, seconds, met):
        goal = harness.Goal('time', 'new', at_most=6.0)
        rows = self.rows([1] * 3, [seconds] * 3, goals=[goal])
        assert rows[1].is_met is met
        assert '<= 6' in reports.table(bench(), rows, 3)

    def test_a_limit_needs_no_baseline(self):
        """Of a metric that only one contender has."""
        rounds = [{'old': {'cpu_seconds': 0}, 'new': row} for row in times(5)]
        goal = harness.Goal('time', 'new', at_most=6.0)
        (row,) = verdicts.evaluate(bench(goals=[goal]), rounds * 3)
        assert row.is_met is True

    def test_people_can_read_it(self):
        goal = harness.Goal('time', 'new', 3.0)
        rows = self.rows([10] * 3, [5] * 3, goals=[goal])
        text = reports.table(bench(), rows, 3)
        last = text.splitlines()[-1].split()
        assert last == [
            'time',
            '[s]',
            'new',
            '5',
            '0%',
            '2.00',
            '2.00',
            '0.00',
            '>=',
            '3',
            'NOT',
            'MET',
        ]

    def test_a_goal_against_another_has_a_row_of_its_own(self):
        rounds = [
            {
                name: {'time': seconds, 'cpu_seconds': 1.0}
                for name, seconds in (
                    ('old', 10.0),
                    ('new', 5.0),
                    ('rival', rival),
                )
            }
            for rival in (6.0, 5.5, 10.0)
        ]
        goals = [
            harness.Goal('time', 'new', 2.0),
            harness.Goal('time', 'new', 1.3, 'rival'),
        ]
        rows = verdicts.evaluate(bench(goals=goals), rounds)
        found = [
            (row.contender, row.against, row.ratio, row.is_met) for row in rows
        ]
        assert found == [
            ('old', '', None, None),
            ('new', '', 2.0, True),
            ('new', 'rival', 1.2, False),
            ('rival', '', 10 / 6, None),
        ]
        assert rows[2].ratio_spread == pytest.approx(0.9)


class Cases:
    """Answers 1 for each of its cases and notes what is asked."""

    def __init__(self, name, *cases, calls):
        self.name = name
        self.cases = cases
        self.calls = calls

    def prepare(self):
        self.calls.append((self.name, 'prepare'))

    def has(self, case):
        return case in self.cases

    def sample(self, case):
        self.calls.append((self.name, case))
        return {case: 1.0, 'cpu_seconds': 7.0}

    def cleanup(self):
        self.calls.append((self.name, 'cleanup'))


class TestCases:
    METRICS = [harness.Metric(name, 'op/s', 'higher') for name in ('a', 'b')]

    def test_all_of_a_case_run_one_after_the_other(self):
        calls = []
        trio = [
            Cases('old', 'a', 'b', calls=calls),
            Cases('new', 'a', 'b', calls=calls),
            Cases('some', 'b', calls=calls),
        ]
        harness.measure(trio, 4, cases=['a', 'b'], tell=lambda line: None)
        ran = [call for call in calls if call[1] in ('a', 'b')]
        for start in range(0, 20, 5):
            cases = [case for _, case in ran[start : start + 5]]
            assert cases in (['a'] * 2 + ['b'] * 3, ['b'] * 3 + ['a'] * 2)

    def test_cpu_is_kept_by_case(self):
        pair = [Cases(name, 'a', 'b', calls=[]) for name in ('old', 'new')]
        rounds = harness.measure(
            pair, 3, cases=['a', 'b'], tell=lambda line: None
        )
        rows = verdicts.evaluate(bench(metrics=self.METRICS), rounds)
        assert {row.cpu_seconds for row in rows} == {7.0}

    def test_who_has_none_of_the_cases_is_not_even_prepared(self):
        calls = []
        pair = [Cases('old', 'a', calls=calls), Cases('new', 'b', calls=calls)]
        harness.measure(pair, 3, cases=['a'], tell=lambda line: None)
        assert {name for name, _ in calls} == {'old'}

    def test_only_takes_the_goals_of_its_cases(self):
        whole = bench(
            metrics=self.METRICS,
            goals=[harness.Goal('a', 'new', 1), harness.Goal('b', 'new', 1)],
        )
        part = whole.only('^b')
        assert [metric.name for metric in part.metrics] == ['b']
        assert [goal.metric for goal in part.goals] == ['b']
        with pytest.raises(harness.Missing):
            whole.only('c')

    def test_a_smoke_run_refuses_what_measured_nothing(self, tmp_path):
        class Idle(Cases):
            def sample(self, case):
                return {case: 0.0}

        for kind, error in ((Cases, None), (Idle, harness.Missing)):
            sample = harness.Bench(
                'sample',
                'a sample',
                self.METRICS,
                'old',
                lambda work, kind=kind: [kind('old', 'a', 'b', calls=[])],
            )
            if error is None:
                runs.smoke(sample, work=tmp_path, tell=lambda line: None)
                continue
            with pytest.raises(error):
                runs.smoke(sample, work=tmp_path, tell=lambda line: None)


class TestRun:
    def test_it_saves_every_measurement(self, tmp_path):
        pair = bench(
            Contender('old', *times(10, 12, 11)),
            Contender('new', *times(5, 6, 5)),
            goals=[harness.Goal('time', 'new', 1.5)],
        )
        lines = []
        assert runs.run(
            pair, work=tmp_path, results=tmp_path, tell=lines.append
        )
        saved = json.loads((tmp_path / 'sample.json').read_text())
        assert [r['old']['time'] for r in saved['rounds']] == [10, 12, 11]
        assert saved['rows'][1]['met'] is True
        assert list(tmp_path.glob('*.tmp')) == []
        assert any('new' in line and 'met' in line for line in lines)

    def test_a_missed_goal_is_told(self, tmp_path):
        pair = bench(
            Contender('old', *times(1, 1, 1)),
            Contender('new', *times(1, 1, 1)),
            goals=[harness.Goal('time', 'new', 4)],
        )
        assert not runs.run(
            pair, work=tmp_path, results=tmp_path, tell=lambda line: None
        )

    def test_too_few_rounds_are_refused_before_anything_runs(self, tmp_path):
        old = Contender('old')
        with pytest.raises(harness.TooFewRounds):
            runs.run(
                bench(old, rounds=5), work=tmp_path, results=tmp_path, rounds=2
            )
        assert old.calls == []
        assert not pathlib.Path(tmp_path, 'sample.json').exists()
