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
"""Whenever a process dies, the repository loses nothing.

Every operation is killed (kill -9) before each call by which it changes
anything: of the chunk store, of the catalog, of the system on a file, and of
the database. Afterwards every version is read in full, and the operation is
repeated: it comes to the end that it would have come to. What is left over
are objects that no version reaches.

The procedures and their steps are those of lazyblob/CRASHES.rst; a step that
the page does not name, or one that it names and that is not done, fails.
"""

import itertools
import pathlib

import dying
import operations
import places
import pytest

PAGE = pathlib.Path(__file__).parents[3] / 'lazyblob' / 'CRASHES.rst'
ENGINES = [('stripes', 'sqlite'), ('bucket', 'mariadb')]
FAMILIES = ['calls', 'file']
#: At how many points of one name each is killed.
MOST = {'stripes': 2, 'bucket': 1}
if places.IS_LONG:
    ENGINES = list(
        itertools.product(
            ('files', 'stripes', 'bucket'),
            ('sqlite', 'mariadb', 'postgresql'),
        )
    )
    FAMILIES += ['commit', 'statement']
    MOST = dict.fromkeys(('files', 'stripes', 'bucket'), 100)
PROCEDURES = [
    name for name, kind in operations.OPERATIONS.items() if kind.title
]
each_engine = pytest.mark.parametrize(
    'engines', ENGINES, indirect=True, ids='-'.join
)
each_procedure = pytest.mark.parametrize('name', PROCEDURES)


def tables():
    """The steps under each title of the page."""
    found = {}
    above, steps = '', []
    for line in PAGE.read_text().splitlines():
        if line and not line.strip('-'):
            steps = found[above] = []
        elif line.startswith('``'):
            steps.append(line.split('``')[1])
        above = line
    return found


def changes(trace):
    """The steps that change something, each where it is done first."""
    return [name for name in dict.fromkeys(trace) if not dying.is_read(name)]


def parts(trace):
    """The calls on files by the step during which they are done."""
    found = {}
    step = ''
    for name in trace:
        if name.startswith('file.'):
            if not dying.is_read(name):
                found.setdefault(step, []).append(name)
        else:
            step = name
    return found


@pytest.mark.parametrize(
    'engines', [('stripes', 'sqlite')], indirect=True, ids='-'.join
)
def test_the_crash_table_names_every_step_in_order(engines, stage):
    written = tables()
    assert len(written) > 8, 'nothing was found: this proves nothing'
    for name in PROCEDURES:
        trial = places.Forked(engines, stage, name, ['calls', 'file'])
        title = operations.OPERATIONS[name].title
        within = parts(trial.trace)
        steps = changes(
            [step for step in trial.trace if not step.startswith('file.')]
        )
        if name == 'Export':
            steps = list(itertools.chain.from_iterable(within.values()))
        assert written.pop(title) == changes(steps), title
        for step, title in (
            ('chunk.put', 'Put, into a folder'),
            ('chunk.replace', 'Replace, in a folder'),
        ):
            if step in within and title in written:
                assert changes(within[step]) == written.pop(title), title
    assert written == {}, 'tables of nothing'


@pytest.mark.soak
@each_procedure
@each_engine
def test_kill_9_at_any_point_loses_nothing(engines, stage, name):
    families, most = FAMILIES, MOST[engines.store]
    if operations.OPERATIONS[name].needs_empty:
        # Making tables is one statement after the other.
        families, most = [*families, 'statement'], max(most, 4)
    trial = places.Forked(engines, stage, name, families)
    points = trial.changes(most)
    assert points, 'nothing changes: this proves nothing'
    for where in points:
        assert trial.play(where, 'kill').was_killed, where
