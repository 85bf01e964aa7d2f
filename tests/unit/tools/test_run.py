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
"""The runner of the stages tells the truth."""

import importlib.util
import pathlib
import sys

import pytest

TOOL = pathlib.Path(__file__).parents[3] / 'tools' / 'test' / 'run.py'


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.setenv('LAZYIMAGE_TEST_RESULTS', str(tmp_path))
    monkeypatch.setenv('PATH', '/usr/bin:/bin')
    spec = importlib.util.spec_from_file_location('stages_runner', TOOL)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, 'stages_runner', module)
    spec.loader.exec_module(module)
    return module


def stage(run, monkeypatch, *checks, name='one'):
    monkeypatch.setattr(run, 'STAGES', {name: lambda: checks})


def test_one_failure_fails_the_run_and_hides_no_other(run, monkeypatch, capfd):
    stage(
        run,
        monkeypatch,
        run.Check('first', ['false']),
        run.Check('second', ['sh', '-c', 'echo here; exit 3']),
        run.Check('third', ['true']),
    )
    assert run.main([]) == 1
    output = capfd.readouterr().out
    assert 'here' in output
    assert 'one: first: 0 passed, 1 failed' in output
    assert 'one: second: 0 passed, 1 failed' in output
    assert output.splitlines()[-1] == '1 passed, 2 failed'


def test_all_passed_is_success(run, monkeypatch, capfd):
    stage(run, monkeypatch, run.Check('first', ['true']))
    assert run.main([]) == 0
    assert capfd.readouterr().out.splitlines()[-1] == '1 passed, 0 failed'


def test_a_missing_program_fails_and_says_what_to_do(run, monkeypatch, capfd):
    stage(run, monkeypatch, run.Check('first', ['no-such-program']))
    assert run.main([]) == 1
    output = capfd.readouterr().out
    assert 'no-such-program is missing' in output
    assert 'bindep.txt' in output


def test_a_suite_without_a_test_fails(run, monkeypatch, capfd):
    stage(run, monkeypatch, run.Check('first', ['true'], suite='cargo'))
    assert run.main([]) == 1
    assert 'no test ran' in capfd.readouterr().out


def test_the_tests_of_a_suite_are_counted(run, monkeypatch, capfd):
    said = (
        'test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured\\n'
        'test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured\\n'
    )
    stage(
        run,
        monkeypatch,
        run.Check(
            'first',
            ['sh', '-c', f"printf '{said}'; exit 101"],
            suite='cargo',
        ),
    )
    assert run.main([]) == 1
    last = capfd.readouterr().out.splitlines()[-1]
    assert last == '7 passed, 3 failed, 1 skipped'


def test_a_suite_that_ends_badly_fails_though_its_tests_passed(
    run, monkeypatch, capfd
):
    said = 'test result: ok. 5 passed; 0 failed; 0 ignored'
    stage(
        run,
        monkeypatch,
        run.Check('x', ['sh', '-c', f'echo "{said}"; exit 1'], suite='cargo'),
    )
    assert run.main([]) == 1
    assert capfd.readouterr().out.splitlines()[-1] == '5 passed, 1 failed'


def test_an_unknown_stage_is_refused(run, capfd):
    with pytest.raises(SystemExit):
        run.main(['nonsense'])
    assert 'no stage "nonsense"' in capfd.readouterr().err


def test_checks_beside_others_run_two_at_a_time_and_speak_in_turn(
    run, monkeypatch, capfd, tmp_path
):
    """Each waits for the other's file, which one after the other cannot."""

    def waiting(own, others):
        return (
            f'echo {own} begins; touch {tmp_path}/{own}; '
            f'for i in $(seq 500); do [ -e {tmp_path}/{others} ] && break; '
            f'sleep 0.02; done; [ -e {tmp_path}/{others} ] || exit 1; '
            f'echo {own} ends'
        )

    stage(
        run,
        monkeypatch,
        run.Check(
            'a', ['sh', '-c', waiting('first', 'second')], beside_others=True
        ),
        run.Check(
            'b', ['sh', '-c', waiting('second', 'first')], beside_others=True
        ),
        run.Check('c', ['sh', '-c', 'echo third; exit 1'], beside_others=True),
    )
    assert run.main([]) == 1
    lines = capfd.readouterr().out.splitlines()
    for name in ('first', 'second'):
        begins = lines.index(f'{name} begins')
        assert lines[begins + 1] == f'{name} ends'
    assert '  one: c: 0 passed, 1 failed' in lines
    assert lines[-1] == '2 passed, 1 failed'
