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
"""``unsafe`` stands in ``mirror/src/sys`` only, each with its reason.

The compiler denies it and clippy asks for the reason, as long as nobody
allows otherwise elsewhere: that is looked at here.
"""

import pathlib
import re
import tomllib

import pytest

MIRROR = pathlib.Path(__file__).resolve().parents[3] / 'mirror'
ALLOWED = MIRROR / 'src' / 'sys'
SOURCES = sorted(
    path
    for folder in ('src', 'tests', 'fuzz', 'benches', 'build.rs')
    for path in [MIRROR / folder, *(MIRROR / folder).rglob('*.rs')]
    if path.suffix == '.rs' and path.is_file() and 'target' not in path.parts
)


def code(path):
    """Its lines without comments and texts."""
    text = re.sub(r'"(\\.|[^"\\])*"', '""', path.read_text())
    return [line.partition('//')[0] for line in text.splitlines()]


@pytest.mark.parametrize(
    'path', SOURCES, ids=lambda path: str(path.relative_to(MIRROR))
)
def test_unsafe_code_is_in_sys_alone(path):
    found = [
        line
        for line in code(path)
        if re.search(r'\bunsafe\b|\bunsafe_code\b|undocumented_unsafe', line)
    ]
    if ALLOWED in path.parents:
        blocks = sum('unsafe {' in line for line in code(path))
        reasons = len(re.findall(r'// SAFETY: \S', path.read_text()))
        assert reasons >= blocks
    else:
        assert not found


def test_the_compiler_and_clippy_deny_it():
    lints = tomllib.loads((MIRROR / 'Cargo.toml').read_text())['lints']
    assert lints['rust']['unsafe_code'] == 'deny'
    assert lints['clippy']['undocumented_unsafe_blocks'] == 'deny'


def test_there_is_unsafe_code_to_look_at():
    assert any('unsafe {' in line for path in SOURCES for line in code(path))
