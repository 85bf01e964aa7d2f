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
"""What tests/conftest.py promises: a test that warns or skips is seen."""

import pathlib
import subprocess
import sys

CONFTEST = pathlib.Path(__file__).parents[2] / 'conftest.py'


def run(folder, source, *options):
    """One run of pytest over one file, under a copy of our conftest."""
    (folder / 'conftest.py').write_text(CONFTEST.read_text())
    (folder / 'allowed_skips.txt').write_text('known gap # told\n')
    (folder / 'pytest.ini').write_text(
        '[pytest]\nmarkers = expect_logs(pattern): see conftest\n'
    )
    (folder / 'test_it.py').write_text(
        'import logging, pytest\nLOG = logging.getLogger("lazyblob.x")\n'
        + source
    )
    done = subprocess.run(
        [sys.executable, '-m', 'pytest', '-p', 'no:cacheprovider', *options],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout


class TestLogs:
    def test_an_unexpected_warning_fails_the_test(self, tmp_path):
        status, output = run(
            tmp_path, 'def test_it():\n    LOG.warning("lost %d", 3)\n'
        )
        assert status == 1
        assert 'WARNING lazyblob.x: lost 3' in output

    def test_an_expected_warning_is_no_failure(self, tmp_path):
        status, output = run(
            tmp_path,
            'def test_it(expect_logs):\n'
            '    with expect_logs("lost"):\n'
            '        LOG.warning("lost %d", 3)\n',
        )
        assert status == 0, output

    def test_an_expected_warning_that_is_not_logged_fails(self, tmp_path):
        status, output = run(
            tmp_path,
            'def test_it(expect_logs):\n'
            '    with expect_logs("lost", count=None):\n'
            '        pass\n',
        )
        assert status == 1
        assert 'expected at least one' in output

    def test_a_mark_allows_what_a_whole_test_logs(self, tmp_path):
        status, output = run(
            tmp_path,
            '@pytest.mark.expect_logs("lost")\n'
            'def test_it():\n    LOG.error("lost again")\n',
        )
        assert status == 0, output

    def test_other_loggers_are_none_of_our_business(self, tmp_path):
        status, output = run(
            tmp_path,
            'def test_it():\n    logging.getLogger("oslo").error("x")\n',
        )
        assert status == 0, output


class TestSkips:
    def test_a_skip_fails_where_skips_fail(self, tmp_path):
        source = 'def test_it():\n    pytest.skip("no libvirt")\n'
        assert run(tmp_path, source)[0] == 0
        status, output = run(tmp_path, source, '--skips-fail')
        assert status == 1
        assert 'no libvirt' in output

    def test_a_module_that_skips_itself_fails_too(self, tmp_path):
        status, output = run(
            tmp_path,
            'pytest.importorskip("no_such_module")\ndef test_it(): pass\n',
            '--skips-fail',
        )
        assert status != 0
        assert 'no_such_module' in output

    def test_a_listed_skip_is_no_failure(self, tmp_path):
        status, output = run(
            tmp_path,
            'def test_it():\n    pytest.skip("known gap")\n',
            '--skips-fail',
        )
        assert status == 0, output


def test_a_seed_repeats_what_chance_did(tmp_path, monkeypatch):
    source = 'def test_it(rng):\n    assert not rng.getrandbits(64) or 0\n'
    monkeypatch.setenv('LAZYIMAGE_TEST_SEED', '7')
    first = run(tmp_path, source)[1]
    assert 'seed: 7' in first
    again = run(tmp_path, source)[1]

    def drawn(output):
        return [line for line in output.splitlines() if 'assert not' in line]

    assert drawn(first) == drawn(again) != []
