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
"""What all commands have in common: exit status, JSON, progress."""

import argparse
import io
import json
import pathlib
import re
import sys

import pytest

from lazyblob import exporting
from nova_lazyimage.cmd import console
from nova_lazyimage.cmd import lazyimage

PAGE = pathlib.Path(__file__).parents[3] / 'doc/source/cli/lazyimage.rst'


def parsers():
    """Each command's own parser."""
    action = next(
        action
        for action in lazyimage.parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    return action.choices


class TestStatus:
    def test_0_it_is_done(self, made):
        assert made('ls')[0] == 0

    def test_1_it_failed_and_says_why_in_one_line(self, made, refused):
        refused(made('show', 'nix'))

    @pytest.mark.parametrize(
        'arguments',
        [
            [],
            ['nix'],
            ['show'],
            ['copy', 'debian'],
            ['import', 'x', '--name', 'y', '--format', 'nix'],
            ['copy', '--all', '--to', 'x', '--threads', '0'],
        ],
    )
    def test_2_the_command_line_is_wrong(self, run, capsys, arguments):
        with pytest.raises(SystemExit) as ended:
            run(*arguments)
        assert ended.value.code == 2
        assert 'usage: lazyimage' in capsys.readouterr().err

    def test_130_it_was_interrupted(self, made, monkeypatch, tmp_path):
        def interrupt(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr(exporting, 'export', interrupt)
        status, out, err = made('export', 'debian', tmp_path / 'x')
        assert (status, out, err) == (130, '', 'lazyimage: interrupted\n')

    def test_the_page_and_the_help_tell_them_all(self):
        table = PAGE.read_text().partition('Exit status\n')[2]
        told = re.findall(r'^(\d+) +\S', table, re.MULTILINE)
        assert told == ['0', '1', '2', '130']
        assert all(f'{code} ' in lazyimage.EPILOG for code in told)


def test_every_command_tells_programs():
    lacking = [
        name
        for name, parser in parsers().items()
        if '--json' not in parser._option_string_actions
    ]
    # Its output is a program.
    assert lacking == ['completion']


def test_every_command_stands_on_the_page():
    page = PAGE.read_text()
    missing = [
        name
        for name in parsers()
        if not re.search(rf'^``{name}[ `]', page, re.MULTILINE)
    ]
    assert missing == []


class Terminal(io.StringIO):
    def isatty(self):
        return True


class TestProgress:
    """On a terminal, and on standard error only."""

    @pytest.mark.parametrize(
        ('arguments', 'verb'),
        [
            (['export', 'debian', '{new}'], 'exporting'),
            (['export', 'debian', '{new}', '--format', 'qcow2'], 'exporting'),
            (['import', '{disk}', '--name', 'x'], 'importing'),
            (['copy', 'debian', '--to', '{there}'], 'copying'),
            (['copy', '--all', '--to', '{there}', '--dry-run'], 'looking'),
            (['du'], 'walking'),
            (['ls'], 'listing'),
            (['history'], 'walking'),
            (['diff', 'debian', 'empty'], 'comparing'),
            (['verify'], 'verifying'),
            (['init', '--chunk-store-moved'], 'looking'),
        ],
    )
    def test_what_takes_long_shows_how_far_it_is(
        self, made, monkeypatch, tmp_path, arguments, verb
    ):
        there = (tmp_path / 'there').as_uri()
        made('--repository', there, 'init')
        empty = tmp_path / 'empty.raw'
        empty.write_bytes(b'')
        made('import', empty, '--name', 'empty')
        places = {
            '{new}': str(tmp_path / 'new'),
            '{disk}': str(tmp_path / 'disk.raw'),
            '{there}': there,
        }
        shown = Terminal()
        monkeypatch.setattr(console, '_PROGRESS_SECONDS', -1)
        monkeypatch.setattr(sys, 'stderr', shown)
        status, out, _ = made(*(places.get(a, a) for a in arguments))
        assert status == 0
        assert f'\r{verb}' in shown.getvalue()
        assert shown.getvalue().endswith('\r\x1b[K')
        assert '\r' not in out

    def test_programs_see_none_of_it(self, made):
        status, out, err = made('du', '--json')
        assert (status, err) == (0, '')
        json.loads(out)
