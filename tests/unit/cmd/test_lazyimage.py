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
"""The command for people."""

import json
import random
import re
import subprocess
import sys

import pytest

from nova_lazyimage.cmd import console
from nova_lazyimage.cmd import lazyimage

CHUNK = 524288
DATA = random.Random(1).randbytes(CHUNK) + bytes(3 * CHUNK) + b'tail'


def answer(result):
    status, out, err = result
    assert (status, err) == (0, '')
    return json.loads(out)


def refused(result):
    """The one line that says why."""
    status, out, err = result
    assert (status, out) == (1, '')
    assert err.startswith('lazyimage: ')
    assert err.count('\n') == 1
    return err


def test_an_image_goes_in_and_comes_out(made, tmp_path):
    out = tmp_path / 'out.raw'
    assert made('export', 'debian', out) == (0, '', '')
    assert out.read_bytes() == DATA
    told = answer(made('export', 'debian', out, '--force', '--json'))
    assert (told['version'], told['size_bytes']) == (1, len(DATA))


def test_what_is_stored_is_listed(made):
    status, out, _ = made('ls')
    assert status == 0
    assert re.match(r'NAME +ID +KIND +VERSION +SIZE', out)
    assert re.search(r'debian .* image +1 +2\.0 MiB', out)
    (row,) = answer(made('ls', '-f', 'json'))
    assert row['size_bytes'] == len(DATA)
    shown = answer(made('show', 'debian', '-f', 'json'))
    assert shown['versions'][0]['size_bytes'] == len(DATA)
    assert 'chunk size' in made('show', row['id'])[1]


def test_an_import_tells_what_it_did(made, tmp_path):
    told = answer(
        made('import', tmp_path / 'disk.raw', '--name', 'again', '-f', 'json')
    )
    assert told['shared_bytes'] == 2 * CHUNK
    assert told['hole_bytes'] == 3 * CHUNK
    assert told['new_bytes'] == 0


def test_a_clone_shares_everything(made):
    clone = answer(made('clone', 'debian@1', '--name', 'c', '-f', 'json'))
    assert clone['size_bytes'] == len(DATA)
    assert answer(made('diff', 'debian', 'c', '-f', 'json')) == []
    assert made('delete', 'debian')[0] == 0
    assert [row['name'] for row in answer(made('ls', '-f', 'json'))] == ['c']
    assert made('verify')[0] == 0


def test_differences_are_ranges(made, tmp_path):
    other = tmp_path / 'other.raw'
    other.write_bytes(b'x' * CHUNK + b'y' * CHUNK + b'z' * CHUNK)
    made('import', other, '--name', 'other')
    found = answer(made('diff', 'debian', 'other', '-f', 'json'))
    assert found == [
        {'offset': 0, 'length_bytes': CHUNK, 'change': 'changed'},
        {'offset': CHUNK, 'length_bytes': 2 * CHUNK, 'change': 'added'},
        {'offset': 4 * CHUNK, 'length_bytes': CHUNK, 'change': 'removed'},
    ]


def test_initialising_twice_is_harmless(made):
    first = answer(made('init', '-f', 'json'))
    assert answer(made('init', '-f', 'json')) == first


@pytest.mark.parametrize(
    ('arguments', 'reason'),
    [
        (['show', 'nix'], 'no blob "nix"'),
        (['export', 'debian@7', 'x'], 'no version 7'),
        (['import', '/nix', '--name', 'x'], '"/nix"'),
        (['import', '{disk}', '--name', 'debian'], '"debian" is used'),
        (['export', 'debian', '{disk}'], '--force'),
        (['delete', 'debian@1'], 'newest'),
        (['import', '{disk}', '--name', 'x', '--chunk-size', '5'], '"5"'),
        (['init', '--dedupe-scope', 'project'], 'dedupe scope'),
    ],
)
def test_what_cannot_be_done_is_one_line(made, tmp_path, arguments, reason):
    disk = str(tmp_path / 'disk.raw')
    result = made(*(a.replace('{disk}', disk) for a in arguments))
    assert reason in refused(result)


def test_a_repository_must_be_named(run, monkeypatch):
    monkeypatch.delenv(console.ENVIRONMENT)
    monkeypatch.setattr(console, 'CONFIG_FILE', '/nix/lazyimage.conf')
    assert console.ENVIRONMENT in refused(run('ls'))


def test_a_repository_that_is_not_there_is_not_made(run, tmp_path):
    assert 'lazyimage init' in refused(run('ls'))
    assert not (tmp_path / 'repository').exists()


def test_the_configuration_file_names_the_repository(
    made, tmp_path, monkeypatch
):
    folder = tmp_path / 'repository'
    path = tmp_path / 'lazyimage.conf'
    path.write_text(
        f'[repository]\n'
        f'chunk_store = file://{folder}/chunks\n'
        f'catalog = sqlite:///{folder}/catalog.sqlite\n'
    )
    monkeypatch.delenv(console.ENVIRONMENT)
    (row,) = answer(made('--config-file', path, 'ls', '-f', 'json'))
    assert row['name'] == 'debian'
    (row,) = answer(made('--repository', folder, 'ls', '-f', 'json'))
    assert row['name'] == 'debian'


def test_a_blob_that_is_attached_is_deleted_only_by_force(made, tmp_path):
    from lazyblob import repository

    repo = repository.Repository.url((tmp_path / 'repository').as_uri())
    repo.catalog.claim(repo.catalog.find('debian').id, 'secret')
    assert 'attached' in refused(made('delete', 'debian'))
    assert made('delete', 'debian', '--force') == (0, '', '')


def test_standard_input_and_output_are_files_too(made, tmp_path):
    command = [sys.executable, '-m', 'nova_lazyimage.cmd.lazyimage']
    subprocess.run(
        [*command, 'import', '-', '--name', 'piped'], input=DATA, check=True
    )
    done = subprocess.run(
        [*command, 'export', 'piped', '-'], capture_output=True, check=True
    )
    assert done.stdout == DATA


@pytest.mark.parametrize(
    'command', [None, *(m.rpartition('.')[2] for m in lazyimage.MODULES)]
)
def test_every_command_explains_itself(command, capsys):
    name = {'import_image': 'import'}.get(command, command)
    with pytest.raises(SystemExit) as caught:
        lazyimage.main([name, '--help'] if name else ['--help'])
    assert caught.value.code == 0
    assert 'usage: lazyimage' in capsys.readouterr().out


def test_names_may_hold_an_at_sign():
    assert console.split('me@home') == ('me@home', None)
    assert console.split('me@home@12') == ('me@home', 12)
    assert console.split('debian') == ('debian', None)


def test_lineage_is_a_tree(made):
    made('clone', 'debian', '--name', 'web')
    made('clone', 'web', '--name', 'blog')
    made('clone', 'debian', '--name', 'db')
    status, out, _ = made('history', 'blog')
    lines = [line.partition('  image')[0] for line in out.splitlines()]
    assert status == 0
    # Of one second, siblings may be told in either order.
    assert lines[0] == 'debian'
    assert sorted(lines[1:]) == ['    @1 -> blog', '@1 -> db', '@1 -> web']
    assert lines.index('    @1 -> blog') == lines.index('@1 -> web') + 1
    rows = answer(made('history', '--json'))
    assert sorted(row['depth'] for row in rows) == [0, 1, 1, 2]
    assert rows[0]['versions'] == [1]


def test_blobs_are_deleted_in_any_order(made):
    made('clone', 'debian', '--name', 'web')
    made('clone', 'web', '--name', 'blog')
    told = answer(made('delete', 'web', '--json'))
    assert told['version'] is None
    out = made('history', 'debian')[1]
    assert 'image, deleted' in out
    assert '    @1 -> blog' in out
    assert made('delete', 'debian')[0] == 0
    assert made('verify')[0] == 0
    (row,) = answer(made('history', '--json'))
    assert (row['name'], row['depth']) == ('blog', 0)


def test_versions_are_deleted_in_any_order(made, tmp_path):
    from lazyblob import repository

    repo = repository.Repository.url((tmp_path / 'repository').as_uri())
    blob = repo.catalog.find('debian')
    for parent in (1, 2, 3):
        manifest = repo.manifest(repo.catalog.version(blob.id).root)
        with repo.commit(blob, manifest, size_bytes=len(DATA)) as commit:
            commit.put(parent, bytes([parent]) * CHUNK)
            repo.catalog.publish(
                blob.id,
                epoch=1,
                parent=parent,
                commit_id=f'c{parent}',
                root=commit.finish(),
                size_bytes=len(DATA),
                session_id=commit.session_id,
            )
    made('clone', 'debian@2', '--name', 'web')
    for number in (2, 1):
        told = answer(made('delete', f'debian@{number}', '--json'))
        assert told['version'] == number
    assert 'no version 2' in refused(made('delete', 'debian@2'))
    assert 'newest' in refused(made('delete', 'debian@4'))
    shown = answer(made('show', 'debian', '--json'))
    assert [row['version'] for row in shown['versions']] == [3, 4]
    assert '[3-4]' in made('history', 'debian')[1]
    assert made('verify')[0] == 0


def test_space_is_accounted_for(made):
    made('clone', 'debian', '--name', 'web')
    found = answer(made('du', '--json'))
    assert found['logical_bytes'] == 2 * len(DATA)
    assert found['unreferenced_bytes'] == 0
    assert {row['unique_bytes'] for row in found['versions']} == {0}
    made('delete', 'debian')
    (row,) = answer(made('du', 'web', '--json'))['versions']
    assert row['unique_bytes'] == row['stored_bytes'] > CHUNK
    status, out, _ = made('du')
    assert status == 0
    assert re.search(r'web +1 +2\.0 MiB +1\.0 MiB', out)
    assert 'physical' in out


def test_a_clone_grows(made):
    size = 10 * CHUNK
    told = answer(
        made('clone', 'debian', '--name', 'b', '--size', size, '--json')
    )
    assert told['size_bytes'] == size
    why = refused(made('clone', 'debian', '--name', 'c', '--size', CHUNK))
    assert 'only grow' in why


def test_what_dead_writers_left_is_listed_and_ended(made, tmp_path):
    from lazyblob import repository

    repo = repository.Repository.url((tmp_path / 'repository').as_uri())
    repo.catalog.begin_session('host:17', 'dead')
    repo.close()
    (row,) = answer(made('sessions', '--json'))
    assert (row['id'], row['owner']) == ('dead', 'host:17')
    assert answer(made('sessions', '--end', 'dead', '--json')) == []


@pytest.mark.parametrize('shell', ['bash', 'zsh', 'tcsh'])
def test_shells_complete_the_commands(run, shell):
    status, out, _ = run('completion', shell)
    assert status == 0
    assert 'history' in out
    if shell == 'bash':
        subprocess.run(['bash', '-n'], input=out, text=True, check=True)


@pytest.mark.parametrize('command', lazyimage.commands())
def test_a_command_teaches(command, capsys):
    with pytest.raises(SystemExit) as ended:
        lazyimage.main([command, '--help'])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    lines = text.partition('Examples::')[2].strip().splitlines()
    assert lines
    assert all('lazyimage' in line for line in lines)


def test_examples_are_commands():
    """Each parses: an option that went is not taught any more."""
    parser = lazyimage.parser()
    for command in lazyimage.commands():
        own = next(
            action.choices[command]
            for action in parser._actions
            if action.dest == 'command'
        )
        for line in own.epilog.splitlines()[2:]:
            found = re.search(r'lazyimage ((?:[^|>)"]|"[^"]*")*)', line)
            parser.parse_args(found[1].split())
