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
import json
import pathlib
import shutil

import pytest

from lazyblob import repository


@pytest.fixture
def there(made, tmp_path):
    """The URL of another repository, empty."""
    url = (tmp_path / 'there').as_uri()
    assert made('--repository', url, 'init')[0] == 0
    return url


@pytest.fixture
def names(made, answer):
    def listing(url):
        rows = answer(made('--repository', url, 'ls', '--json'))
        return [row['name'] for row in rows]

    return listing


def commit(folder, name):
    """Another version, as an agent makes one."""
    repo = repository.Repository.url((folder / 'repository').as_uri())
    blob = repo.catalog.find(name)
    head = repo.catalog.version(blob.id)
    parent = repo.manifest(head.root)
    with repo.commit(blob, parent, size_bytes=head.size_bytes) as target:
        target.put(2, b'x' * blob.chunk_size_bytes)
        repo.catalog.publish(
            blob.id,
            epoch=blob.epoch,
            parent=head.number,
            commit_id=f'c{head.number}',
            root=target.finish(),
            size_bytes=head.size_bytes,
            session_id=target.session_id,
        )
    repo.close()


def test_a_blob_goes_with_its_history(made, answer, there, tmp_path):
    commit(tmp_path, 'debian')
    told = answer(made('copy', 'debian', '--to', there, '--json'))
    assert [row['version'] for row in told['versions']] == [1, 2]
    assert told['copied_bytes'] > 0
    at = ['--repository', there]
    assert answer(made(*at, 'show', 'debian', '--json')) == {
        **answer(made('show', 'debian', '--json'))
    }
    assert made(*at, 'verify')[0] == 0
    again = answer(made('copy', 'debian', '--to', there, '--json'))
    assert again['copied_bytes'] == again['found_objects'] == 0
    assert {row['outcome'] for row in again['versions']} == {'there already'}
    out = made('copy', 'debian', '--to', there)[1]
    assert 'OUTCOME' in out and 'there already' in out


def test_one_version_may_go_alone(made, answer, there, tmp_path):
    commit(tmp_path, 'debian')
    told = answer(made('copy', 'debian@2', '--to', there, '--json'))
    assert [row['version'] for row in told['versions']] == [2]


def test_all_go_and_share_there_what_they_share_here(
    made, answer, there, names
):
    made('clone', 'debian', '--name', 'web')
    told = answer(made('copy', '--all', '--to', there, '--json'))
    assert sorted(names(there)) == ['debian', 'web']
    # Of one second, either may go first.
    assert min(row['copied_objects'] for row in told['versions']) == 0
    at = ['--repository', there]
    found = answer(made(*at, 'history', '--json'))
    assert [row['depth'] for row in found] == [0, 1]


def test_a_dry_run_tells_and_does_nothing(made, answer, there, names):
    told = answer(made('copy', '--all', '--to', there, '--dry-run', '--json'))
    assert names(there) == []
    done = answer(made('copy', '--all', '--to', there, '--json'))
    assert told == {
        'versions': 1,
        'objects': done['copied_objects'],
        'travelling_bytes': done['copied_bytes'],
    }


def test_under_another_name_it_is_another_blob(made, answer, there, names):
    for _ in range(2):
        made('copy', 'debian', '--to', there, '--as', 'copy')
    made('copy', 'debian', '--to', there)
    assert sorted(names(there)) == ['copy', 'debian']


def test_the_other_one_may_be_in_a_configuration_file(
    made, there, names, tmp_path
):
    folder = tmp_path / 'there'
    path = tmp_path / 'other.conf'
    path.write_text(
        f'[repository]\nchunk_store = file://{folder}/chunks\n'
        f'catalog = sqlite:///{folder}/catalog.sqlite\n'
    )
    assert made('copy', '--all', '--to-config-file', path)[0] == 0
    assert names(there) == ['debian']


def test_another_scope_and_project(made, answer, tmp_path):
    url = (tmp_path / 'apart').as_uri()
    at = ['--repository', url]
    made(*at, 'init', '--dedupe-scope', 'project')
    told = made('copy', 'debian', '--to', url, '--project', 'p1')
    assert told[0] == 0
    shown = answer(made(*at, 'show', 'debian', '--json'))
    assert (shown['project_id'], shown['scope']) == ('p1', 'project:p1')
    assert made(*at, 'verify')[0] == 0


def test_what_cannot_be_copied_is_told_and_the_rest_is(
    made, there, names, tmp_path
):
    made('clone', 'debian', '--name', 'web')
    other = tmp_path / 'other.raw'
    other.write_bytes(b'other')
    made('--repository', there, 'import', other, '--name', 'web')
    status, out, err = made('copy', '--all', '--to', there, '--json')
    assert status == 1
    assert err.count('\n') == 1 and 'web@1' in err and '"web"' in err
    rows = {row['name']: row for row in json.loads(out)['versions']}
    assert rows['web']['outcome'] == 'failed'
    assert rows['debian']['outcome'] == 'copied'
    status, _, err = made('copy', 'web', '--to', there, '--dry-run')
    assert status == 1 and 'web@1' in err


@pytest.mark.parametrize(
    ('arguments', 'reason'),
    [
        (['--to', '{there}'], '--all'),
        (['debian', '--all', '--to', '{there}'], '--all'),
        (['nix', '--to', '{there}'], '"nix"'),
        (['debian@7', '--to', '{there}'], 'no version 7'),
        (['debian', '--to', '/nix/there'], 'lazyimage init'),
        (['debian', '--to', '{here}'], 'same repository'),
        (['debian', '--to-config-file', '/nix'], '/nix'),
        (['debian', 'web', '--to', '{there}', '--as', 'x'], '--as "x"'),
    ],
)
def test_what_makes_no_sense_is_one_line(
    made, refused, there, tmp_path, arguments, reason
):
    made('clone', 'debian', '--name', 'web')
    here = str(tmp_path / 'repository')
    result = made(
        'copy',
        *(
            each.replace('{there}', there).replace('{here}', here)
            for each in arguments
        ),
    )
    assert reason in refused(result)


class TestMovedStore:
    """``init --chunk-store-moved`` looks before it believes."""

    @pytest.fixture
    def moved(self, made, tmp_path):
        """Its chunks are copied to another folder; what says so."""
        folder = tmp_path / 'repository'
        shutil.copytree(folder / 'chunks', tmp_path / 'new')
        path = tmp_path / 'new.conf'
        path.write_text(
            f'[repository]\nchunk_store = file://{tmp_path}/new\n'
            f'catalog = sqlite:///{folder}/catalog.sqlite\n'
        )
        return ['--config-file', path]

    def test_a_whole_copy_is_believed(self, made, answer, moved, refused):
        assert 'chunk-store-moved' in refused(made(*moved, 'init'))
        command = [*moved, 'init', '--chunk-store-moved', '--json']
        assert answer(made(*command))['chunk_store'].endswith('/new')
        assert made(*moved, 'verify')[0] == 0

    @pytest.mark.parametrize('lost', ['a chunk', 'a node', 'everything'])
    def test_a_store_that_lacks_something_is_not(
        self, made, answer, moved, refused, tmp_path, lost
    ):
        new = tmp_path / 'new'
        paths = sorted(
            (path for path in new.rglob('*') if path.is_file()),
            key=lambda path: path.stat().st_size,
        )
        # The tail is one chunk, the noise the other: both go.
        chosen = {'a chunk': paths[-1:], 'a node': paths[1:2]}
        for path in chosen.get(lost, paths):
            path.unlink()
        if lost == 'a chunk':
            small = min(
                (p for p in new.rglob('*') if is_chunk(p)),
                key=lambda path: path.stat().st_size,
            )
            small.unlink()
        command = [*moved, 'init', '--chunk-store-moved']
        why = refused(made(*command))
        assert 'version 1 of blob' in why and '--allow-missing' in why
        assert str(new) in why
        # Nothing was changed: the old place is still the one.
        assert made('init')[0] == made('verify')[0] == 0
        assert made(*command, '--allow-missing')[0] == 0

    def test_an_empty_repository_moves_anywhere(self, run, tmp_path):
        run('init')
        path = pathlib.Path(tmp_path / 'new.conf')
        path.write_text(
            f'[repository]\nchunk_store = file://{tmp_path}/new\n'
            f'catalog = sqlite:///{tmp_path}/repository/catalog.sqlite\n'
        )
        at = ['--config-file', path]
        assert run(*at, 'init', '--chunk-store-moved')[0] == 0


def is_chunk(path):
    return path.is_file() and path.read_bytes()[6:7] == b'\0'


def test_a_catalog_moves_to_another_database(made, answer, refused, tmp_path):
    folder = tmp_path / 'repository'
    files = []
    for name in ('catalog', 'other'):
        files.append(tmp_path / f'{name}.conf')
        files[-1].write_text(
            f'[repository]\nchunk_store = file://{folder}/chunks\n'
            f'catalog = sqlite:///{folder}/{name}.sqlite\n'
        )
    before = answer(made('show', 'debian', '--json'))
    command = ['--config-file', files[1], 'init', '--catalog-from', files[0]]
    uuid = answer(made(*command, '--json'))['uuid']
    assert uuid == answer(made('init', '--json'))['uuid']
    at = ['--config-file', files[1]]
    assert answer(made(*at, 'show', 'debian', '--json')) == before
    assert 'already' in refused(made(*command))
