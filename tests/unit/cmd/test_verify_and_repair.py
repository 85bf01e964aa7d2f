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
"""``lazyimage verify`` and ``lazyimage repair``, as people type them."""

import json
import random
import re
import shutil

import pytest

from lazyblob import exceptions
from nova_lazyimage.agent import client
from nova_lazyimage.cmd.commands import verify

CHUNK = 524288
DATA = random.Random(1).randbytes(3 * CHUNK) + bytes(3 * CHUNK) + b'tail'


@pytest.fixture
def made(run, tmp_path):
    """A repository with an image, ``debian``, and a clone of it, ``web``."""
    path = tmp_path / 'disk.raw'
    path.write_bytes(DATA)
    assert run('init')[0] == 0
    assert run('import', path, '--name', 'debian')[0] == 0
    assert run('clone', 'debian', '--name', 'web')[0] == 0
    return run


@pytest.fixture
def backup(made, tmp_path):
    """A copy of its folder."""
    shutil.copytree(tmp_path / 'repository', tmp_path / 'backup')
    return tmp_path / 'backup'


def objects(tmp_path, folder='repository'):
    """Paths of what is stored, the largest first: chunks, then the rest."""
    chunks = tmp_path / folder / 'chunks'
    found = (path for path in chunks.rglob('*') if path.is_file())
    return sorted(found, key=lambda path: (-path.stat().st_size, path.name))


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


def told(result):
    return json.loads(result[1])


def place_of(path):
    """Where the chunk of an object is in the disk."""
    return DATA.index(path.read_bytes()[32:64])


class TestVerify:
    def test_what_is_sound_is_summed_up(self, made):
        found = told(made('verify', '--json'))
        assert found['versions'] == 2
        assert (found['chunks'], found['bad_objects']) == (4, 0)
        assert (found['read_bytes'], found['damage']) == (0, [])
        status, out, err = made('verify', '--read-data')
        assert (status, err) == (0, '')
        assert re.search(r'^read +2\.0 MiB$', out, re.MULTILINE)
        assert told(made('verify', 'debian@1', '--json'))['versions'] == 1

    def test_damage_is_told_with_all_that_it_hits(self, made, tmp_path):
        path = objects(tmp_path)[0]
        at = place_of(path)
        flip(path)
        assert made('verify')[0] == 0
        status, out, err = made('verify', '--read-data')
        assert status == 1
        assert re.search(r'^damaged versions +2$', out, re.MULTILINE)
        for name in ('debian', 'web'):
            assert f'{name}@1: bytes {at} to {at + CHUNK - 1}: chunk' in err
        assert path.name in err
        # A look finds what was found before, by the list.
        status, out, _ = made('verify', 'debian', '--json')
        assert status == 1
        (row,) = json.loads(out)['damage']
        assert (row['name'], row['version']) == ('debian', 1)
        assert (row['offset'], row['length_bytes']) == (at, CHUNK)
        assert (row['kind'], row['digest']) == ('chunk', path.name)
        assert 'checksum' in row['reason']

    def test_neighbours_are_one_line(self, made, tmp_path):
        for path in objects(tmp_path)[:3]:
            path.unlink()
        status, _, err = made('verify', 'debian')
        assert status == 1
        assert err == (
            f'debian@1: bytes 0 to {3 * CHUNK - 1}: 3 chunks, each: it is '
            f'not there\n'
        )

    def test_leavings_are_listed_and_no_damage(self, made, tmp_path):
        made('delete', 'debian')
        made('delete', 'web')
        status, out, _ = made('verify', '--unreferenced')
        assert status == 0
        for path in objects(tmp_path):
            assert f'{path.name} {path.stat().st_size}\n' in out
        found = told(made('verify', '--unreferenced', '--json'))
        assert found['unreferenced_objects'] == len(found['unreferenced']) == 6

    def test_parts_make_a_whole(self, made, tmp_path):
        flip(objects(tmp_path)[0])
        flip(objects(tmp_path)[1])
        bad = [
            told(
                made('verify', '--read-data', '--subset', f'{n}/2', '--json')
            )['bad_objects']
            for n in (1, 2)
        ]
        # What the first found is listed, so that the second reads it, too.
        assert bad[1] == 2

    def test_today_is_another_part_each_day(self, monkeypatch):
        found = []
        for day in range(14):
            monkeypatch.setattr(
                verify.time, 'time', lambda day=day: day * 86400.0 + 5
            )
            found.append(verify.subset('today/7').number)
        assert found == [1, 2, 3, 4, 5, 6, 7] * 2

    @pytest.mark.parametrize(
        ('arguments', 'said'),
        [
            (['--subset', '1/2'], '--read-data'),
            (['--read-data', '--subset', '3/2'], '"3/2"'),
            (['--read-data', '--subset', '0/2'], '"0/2"'),
            (['--read-data', '--subset', 'x'], '"x"'),
            (['--read-data', '--subset', '1/0'], '"1/0"'),
            (['--limit-mib', '0'], '--limit-mib is "0"'),
            (['--threads', '0'], '--threads is "0"'),
            (['debian', '--unreferenced'], '"debian"'),
            (['nix'], '"nix"'),
        ],
    )
    def test_options_that_cannot_work_are_named(self, made, arguments, said):
        status, out, err = made('verify', *arguments)
        assert (status, out) == (1, '')
        assert err.startswith('lazyimage: ')
        assert said in err


class TestRepair:
    def test_a_backup_gives_back_what_is_lost(self, made, backup, tmp_path):
        lost, damaged, *_, smallest = objects(tmp_path)
        lost.unlink()
        flip(damaged)
        smallest.unlink()
        source = ['--from', backup, '--read-data', '--json']
        shown = made('repair', *source, '--dry-run')
        assert shown[0] == 0
        assert told(shown)['repairable_objects'] == 3
        assert not lost.exists()
        found = made('repair', *source)
        assert found[0] == 0
        assert sorted(told(found)['repaired']) == sorted(
            path.name for path in (lost, damaged, smallest)
        )
        assert made('verify', '--read-data')[0] == 0
        assert told(made('repair', *source))['repaired_objects'] == 0

    def test_a_chunk_store_is_a_source_too(self, made, backup, tmp_path):
        objects(tmp_path)[0].unlink()
        source = (backup / 'chunks').as_uri()
        assert made('repair', '--from', source)[0] == 0
        assert made('verify')[0] == 0

    def test_what_nobody_has_is_told(self, made, backup, tmp_path):
        path = objects(tmp_path)[0]
        at = place_of(path)
        path.unlink()
        objects(tmp_path, 'backup')[0].unlink()
        status, out, err = made('repair', '--from', backup)
        assert status == 1
        assert re.search(r'^lost objects +1$', out, re.MULTILINE)
        for name in ('debian', 'web'):
            assert f'{name}@1: bytes {at} to {at + CHUNK - 1}: chunk' in err
        status, out, _ = made('repair', '--json')
        assert status == 1
        assert {row['name'] for row in json.loads(out)['lost']} == {
            'debian',
            'web',
        }

    @pytest.mark.expect_logs('is passed over')
    def test_an_agents_cache_gives_chunks(self, made, tmp_path, monkeypatch):
        """Believed only if they are what was asked for."""
        first, second, third = objects(tmp_path)[:3]
        contents = {
            path.name: path.read_bytes()[32:] for path in (first, second)
        }
        contents[second.name] = b'x' * CHUNK
        for path in (first, second, third):
            path.unlink()

        def chunk(self, digest, chunk_size_bytes):
            assert chunk_size_bytes == CHUNK
            if digest not in contents:
                raise client.NotFound('not there')
            return contents[digest]

        monkeypatch.setattr(client.AgentClient, 'chunk', chunk)
        status, out, _ = made('repair', '--from-cache', 'socket', '--json')
        assert status == 1
        assert json.loads(out)['repaired'] == [first.name]
        assert json.loads(out)['lost_objects'] == 2

    @pytest.mark.expect_logs('is passed over')
    def test_an_agent_that_is_away_is_passed_over(
        self, made, backup, tmp_path
    ):
        objects(tmp_path)[0].unlink()
        away = ['--from-cache', tmp_path / 'no.sock']
        assert made('repair', *away)[0] == 1
        assert made('repair', *away, '--from', backup)[0] == 0

    @pytest.mark.parametrize(
        ('source', 'said'),
        [
            ('repository', 'is the repository that is to be repaired'),
            ('nowhere', 'no such folder'),
            ('nonsense://x', 'nonsense'),
        ],
    )
    def test_a_source_that_cannot_be_one_is_named(
        self, made, tmp_path, source, said
    ):
        given = source if '://' in source else tmp_path / source
        status, out, err = made('repair', '--from', given)
        assert (status, out) == (1, '')
        assert said in err


def test_a_cache_has_no_manifests(tmp_path):
    from lazyblob import wanted
    from nova_lazyimage.cmd.commands import repair

    source = repair.CacheSource(str(tmp_path / 'no.sock'))
    assert not source.has(wanted.node(bytes(32), 'repository'))
    with pytest.raises(exceptions.TemporaryStoreError):
        source.has(wanted.piece(bytes(32), 'repository', CHUNK))
