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
"""The journal keeps every record whole, whenever the agent dies."""

import os
import pathlib
import subprocess
import sys
import uuid

import pytest

from nova_lazyimage.agent import journal
from nova_lazyimage.agent import state


@pytest.fixture
def folders(tmp_path):
    made = state.Folders(
        tmp_path / 'state', tmp_path / 'run', tmp_path / 'mnt'
    )
    made.make()
    return made


@pytest.fixture
def book(folders):
    return journal.Journal(folders)


def record(**changed):
    fields = {
        'attach_id': str(uuid.uuid4()),
        'instance': str(uuid.uuid4()),
        'disk': 'disk',
        'state': journal.State.ATTACHED,
        'blob_id': 'blob',
        'secret': 'secret',
        'base': journal.Point(1, 'ab'),
        'parent': journal.Point(2, 'cd'),
        'commit': journal.Commit('c', journal.Stage.PUBLISHING, root='ef'),
        **changed,
    }
    made = journal.Record(**fields)
    made.add_result(journal.Result('c0', 'failed', 'blob', error='why'))
    return made


def test_a_record_is_read_as_it_was_saved(book):
    saved = record()
    book.save(saved)
    assert book.load() == [saved]


def test_a_record_is_replaced_and_forgotten(book, folders):
    saved = record()
    book.save(saved)
    saved.state = journal.State.RELEASING
    book.save(saved)
    assert [r.state for r in book.load()] == [journal.State.RELEASING]
    book.forget(saved)
    assert book.load() == []


def test_a_record_that_was_forgotten_does_not_come_back(book):
    saved = record()
    book.save(saved)
    book.forget(saved)
    book.save(saved)
    assert book.load() == []


@pytest.mark.parametrize(
    'data', [b'', b'{', b'[]', b'{"format": 99}', b'{"format": 1}']
)
def test_a_damaged_record_is_named_and_the_others_are_read(
    book, folders, data, expect_logs
):
    good = record()
    book.save(good)
    (folders.journal / 'bad.json').write_bytes(data)
    with expect_logs(r'could not read ".*bad\.json"'):
        assert book.load() == [good]
    assert len(book.damaged) == 1


def test_a_killed_writer_leaves_the_old_record_or_the_new(folders, book):
    """A process that does nothing but save is killed again and again."""
    saved = record()
    book.save(saved)
    program = (
        'import pathlib, sys\n'
        'from nova_lazyimage.agent import journal, state\n'
        'root = pathlib.Path(sys.argv[1])\n'
        'folders = state.Folders(root / "state", root / "run", root / "mnt")\n'
        'book = journal.Journal(folders)\n'
        'record, = book.load()\n'
        'print("ready", flush=True)\n'
        'while True:\n'
        '    record.epoch += 1\n'
        '    record.secret = str(record.epoch) * 1000\n'
        '    book.save(record)\n'
    )
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, '-c', program, str(folders.state.parent)],
            stdout=subprocess.PIPE,
        )
        process.stdout.readline()
        try:
            process.wait(0.2)
        except subprocess.TimeoutExpired:
            process.kill()
        process.wait()
        process.stdout.close()
        (found,) = book.load()
        assert found.secret == str(found.epoch) * 1000
    folders.sweep()
    names = [path.name for path in folders.journal.iterdir()]
    assert sorted(names) == sorted([f'{saved.attach_id}.json', 'images'])


def test_only_a_few_results_of_commits_are_kept():
    kept = record()
    for number in range(20):
        kept.add_result(journal.Result(f'c{number}', 'published', 'blob'))
    assert len(kept.results) == journal.RESULTS_MAX
    assert kept.result('c19') is not None
    assert kept.result('c1') is None


def test_a_clone_has_one_id_for_each_attachment():
    ids = {
        journal.blob_id_for('i', 'disk', 'a'),
        journal.blob_id_for('i', 'disk', 'a'),
        journal.blob_id_for('i', 'disk', 'b'),
        journal.blob_id_for('i', 'disk.rescue', 'a'),
    }
    assert len(ids) == 3


def test_the_session_is_the_same_until_the_host_boots(book):
    first = book.session_id('boot 1'.replace(' ', '-'))
    assert book.session_id('boot-1') == first
    assert book.session_id('boot-2') != first


def test_images_are_noted_and_forgotten(book):
    book.save_image(journal.Image('i', 1.0))
    assert book.images() == [journal.Image('i', 1.0)]
    assert book.image('i') == journal.Image('i', 1.0)
    book.forget_image('i')
    book.forget_image('i')
    assert book.image('i') is None


def test_secrets_are_for_the_agent_alone(book, folders):
    book.save(record())
    (path,) = folders.journal.glob('*.json')
    assert path.stat().st_mode & 0o077 == 0
    assert folders.journal.stat().st_mode & 0o077 == 0


def test_a_lock_ends_with_its_process_and_names_it(folders):
    program = (
        'import pathlib, sys\n'
        'from nova_lazyimage.agent import state\n'
        'state.Lock(pathlib.Path(sys.argv[1]), "the place").acquire()\n'
        'print("ready", flush=True)\n'
        'sys.stdin.read()\n'
    )
    process = subprocess.Popen(
        [sys.executable, '-c', program, str(folders.journal / 'lock')],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    process.stdout.readline()
    lock = state.Lock(folders.journal / 'lock', 'the place')
    expected = f'the place belongs to the agent with pid {process.pid};'
    with pytest.raises(state.Locked, match=expected):
        lock.acquire(patience_seconds=0)
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()
    lock.acquire(patience_seconds=0)
    lock.release()


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / 'file'
    state.replace(path, b'before')

    def fail(*args):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', fail)
    with pytest.raises(OSError, match='No space'):
        state.replace(path, b'after')
    assert path.read_bytes() == b'before'
    assert list(pathlib.Path(tmp_path).iterdir()) == [path]
