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
"""The documents name tests that exist.

Below ``Proved by::`` stand files, and below each the tests of it:
``Class::test`` or ``test`` in Python, the function's name in Rust.
"""

import ast
import pathlib
import re

import pytest

TREE = pathlib.Path(__file__).parents[3]
SOURCE = TREE / 'doc' / 'source'
SPECIFICATION = SOURCE / 'reference' / 'specification.rst'
CONTRACTS = SOURCE / 'contributor' / 'contracts.rst'


def named(text):
    """Pairs of file and test that a document names."""
    pairs = []
    inside, file = False, ''
    for line in text.splitlines():
        if line.strip() == 'Proved by::':
            inside, file = True, ''
        elif line and not line.startswith(' '):
            inside = False
        elif inside and line.strip():
            if line.startswith('        '):
                pairs.append((file, line.strip()))
            else:
                file = line.strip()
    return pairs


def find_tests(file):
    text = (TREE / file).read_text()
    if file.endswith('.rs'):
        return set(re.findall(r'^\s*fn (\w+)\(', text, re.MULTILINE))
    found = set()
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {
                f'{node.name}::{method.name}'
                for method in node.body
                if isinstance(method, ast.FunctionDef)
            }
    return found


@pytest.mark.parametrize('document', [SPECIFICATION, CONTRACTS])
def test_every_test_that_a_document_names_exists(document):
    pairs = named(document.read_text())
    assert len(pairs) > 10, 'nothing was found: this run proves nothing'
    missing = []
    for file, name in pairs:
        if not (TREE / file).is_file() or name not in find_tests(file):
            missing.append(f'{file} {name}')
    assert missing == []


def test_each_of_the_nine_statements_is_proved():
    text = SPECIFICATION.read_text()
    statements = re.split(r'^\d\. .*\n=+\n', text, flags=re.MULTILINE)[1:]
    assert len(statements) == 9
    for number, statement in enumerate(statements, 1):
        assert named(statement), f'statement {number} names no test'


def test_every_contract_stands_under_its_number():
    numbers = [
        int(number)
        for number in re.findall(
            r'^(\d+)\. ', CONTRACTS.read_text(), re.MULTILINE
        )
    ]
    assert numbers == list(range(1, 46))


def test_a_name_that_is_no_test_is_found():
    assert 'no_such_test' not in find_tests('tests/unit/tools/test_run.py')
    assert named('Proved by::\n\n    a.py\n        B::c\n\nText\n') == [
        ('a.py', 'B::c')
    ]
