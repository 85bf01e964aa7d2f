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
"""Random histories by several processes at once, against a model.

Each process writes down what it is about to do and what came of it. One is
killed at random moments and started again. Whatever the order was, in the end

* every version holds what its parent held, with its own changes;
* what was answered as done is there, unless somebody set out to delete it;
* nothing is there that nobody set out to make;
* no number of a blob was given twice, no blob or version deleted twice;
* every version reads back whole and verifies.
"""

import collections
import json
import os
import pathlib
import subprocess
import sys
import time

import historian
import places
import pytest

from lazyblob import accounting

PROCESSES = 3
SECONDS = float(os.environ.get('LAZYIMAGE_SOAK_SECONDS', '1.5'))
HERE = pathlib.Path(__file__).parent


ENGINES = [
    ('files', 'sqlite'),
    ('files', 'mariadb'),
    ('stripes', 'postgresql'),
    ('bucket', 'mariadb'),
]
if places.IS_LONG:
    ENGINES += [('bucket', 'sqlite'), ('bucket', 'postgresql')]


class Model:
    """What the journals say."""

    def __init__(self, folder):
        self.intents = {}
        self.ends = {}
        for path in sorted(folder.glob('*.journal')):
            # A line that a kill cut short was never begun to be acted on.
            for line in path.read_text().split('\n')[:-1]:
                fields = json.loads(line)
                kept = self.ends if 'end' in fields else self.intents
                kept[fields['id']] = fields
        self.by_act = collections.defaultdict(dict)
        for key, fields in self.intents.items():
            self.by_act[fields['act']][key] = fields

    def done(self, act):
        return {
            key: {**fields, **self.ends[key]}
            for key, fields in self.by_act[act].items()
            if self.ends.get(key, {}).get('end') == 'done'
        }

    def names(self, version, versions):
        """The names of a version's chunks, from what was told."""
        changes = []
        blob_id, number, commit_id = key_of(version)
        while True:
            commit = self.by_act['commit'].get(commit_id)
            if commit is not None:
                assert commit['blob'] == blob_id
                assert commit['parent'] == number - 1
                changes.append(commit['changes'])
                number -= 1
            elif blob_id in self.by_act['clone']:
                assert number == 1
                blob_id, number = self.by_act['clone'][blob_id]['source']
            else:
                names = list(self.by_act['create'][blob_id]['names'])
                break
            commit_id = self.commit_of(blob_id, number, versions)
        for change in reversed(changes):
            for index, name in change:
                names[index] = name
        return names

    def commit_of(self, blob_id, number, versions):
        """The commit that made a version, also of one that is gone."""
        if (blob_id, number) in versions:
            return versions[blob_id, number].commit_id
        found = [
            key
            for key, fields in self.by_act['commit'].items()
            if (fields['blob'], fields['parent']) == (blob_id, number - 1)
            and self.ends.get(key, {}).get('end') in ('done', None)
        ]
        decided = [key for key in found if key in self.ends]
        return (decided or found or [''])[0]


def key_of(version):
    return version.blob_id, version.number, version.commit_id


@pytest.mark.soak
@pytest.mark.parametrize('engines', ENGINES, indirect=True, ids='-'.join)
def test_histories_of_many_processes_agree_with_the_model(
    engines, tmp_path, rng
):
    folder = tmp_path / 'journals'
    folder.mkdir()
    place = engines.shared()
    run(place, folder, rng)
    model = Model(folder)
    repo = place.connect()
    versions = {
        (version.blob_id, version.number): version
        for version in accounting.all_versions(repo.catalog)
    }
    blobs = {blob.id: blob for blob in repo.catalog.list_blobs()}
    print(
        f'{len(model.intents)} operations, {len(blobs)} blobs, '
        f'{len(versions)} versions',
        collections.Counter(end['end'] for end in model.ends.values()),
    )
    assert len(model.done('commit')) > 10
    assert model.done('delete') and model.done('read')

    # No two successes exclude one another.
    made = [(d['blob'], d['number']) for d in model.done('commit').values()]
    assert len(made) == len(set(made))
    deleted = [d['blob'] for d in model.done('delete').values()]
    assert len(deleted) == len(set(deleted))
    dropped = [(d['blob'], d['number']) for d in model.done('drop').values()]
    assert len(dropped) == len(set(dropped))

    # What was done is there, what was deleted is not.
    doomed = {fields['blob'] for fields in model.by_act['delete'].values()}
    gone = {
        (fields['blob'], fields['number'])
        for fields in model.by_act['drop'].values()
    }
    for act in ('create', 'clone'):
        for fields in model.done(act).values():
            assert fields['blob'] in blobs or fields['blob'] in doomed
    for fields in model.done('commit').values():
        key = fields['blob'], fields['number']
        assert key in versions or key in gone or key[0] in doomed
    assert not set(deleted) & set(blobs)
    assert not set(dropped) & set(versions)

    # Contents.
    checked = set()
    for version in versions.values():
        expected = historian.content(model.names(version, versions))
        if version.root not in checked:
            data = b''.join(repo.reader(version.root).stream())
            assert data == expected, key_of(version)
            assert repo.verify(version.blob_id, version.number).is_sound
            checked.add(version.root)
    for fields in model.done('read').values():
        assert fields['size'] == historian.CHUNK * historian.CHUNKS
        version = versions.get((fields['blob'], fields['number']))
        if version is not None:
            data = repo.reader(version.root).read(0, 32)
            assert data.hex() == fields['first']

    for fields in model.done('verify').values():
        assert fields['is_sound']

    # Only those who were killed left a session.
    finished = {
        path.stem
        for path in folder.glob('*.journal')
        if '"finished"' in path.read_text()
    }
    owners = {
        session.owner.split(':')[1] for session in repo.catalog.sessions()
    }
    assert not owners & finished
    repo.close()


def run(place, folder, rng):
    """The processes, one of which is killed and replaced again and again."""

    def start(seconds):
        # The journal is named by the process, which names its sessions.
        return subprocess.Popen(
            [
                'sh',
                '-c',
                'exec "$0" "$1" "$2" "$3" "$4/$$.journal" "$5" "$6"',
                *(sys.executable, str(HERE / 'historian.py')),
                *(place.chunk_store, place.catalog),
                *(str(folder), str(rng.random()), str(seconds)),
            ],
            env={
                **os.environ,
                **place.environment(),
                'PYTHONPATH': os.pathsep.join(sys.path),
            },
        )

    until = time.monotonic() + SECONDS + 1
    steady = [start(SECONDS) for _ in range(PROCESSES - 1)]
    kills = 0
    while time.monotonic() < until:
        mortal = start(3600)
        with pytest.raises(subprocess.TimeoutExpired):
            mortal.wait(rng.uniform(1, 2.5))
        mortal.kill()
        mortal.wait()
        kills += 1
    assert kills, 'nobody was killed: this proves nothing'
    assert [process.wait() for process in steady] == [0] * len(steady)
