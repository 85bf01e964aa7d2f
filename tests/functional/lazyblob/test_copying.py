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
"""Whole repositories go from one set of real engines to another."""

import itertools
import os
import random
import signal
import subprocess
import sys
import time

import gateway as gateways
import pytest

from lazyblob import copy_plan
from lazyblob import copying
from lazyblob import importing
from lazyblob import repository
from lazyblob.catalog import moving

CHUNK = 4096
COMMAND = [sys.executable, '-m', 'nova_lazyimage.cmd.lazyimage']
_numbers = itertools.count(1)


class Place:
    """A repository on some engines, and the file that names it."""

    def __init__(self, folder, chunk_store, catalog, settings=None):
        self.chunk_store, self.catalog = chunk_store, catalog
        self.store_settings = {'s3': settings} if settings else {}
        self.config_file = folder / f'place-{next(_numbers)}.conf'
        lines = [f'chunk_store = {chunk_store}', f'catalog = {catalog}']
        if settings:
            lines += [
                f's3_endpoint = {settings.endpoint}',
                f's3_access_key_id = {settings.access_key_id}',
                f's3_secret_access_key = {settings.secret_access_key}',
            ]
        text = '\n'.join(['[repository]', *lines])
        self.config_file.write_text(f'{text}\n')

    def make(self):
        return repository.initialise(
            self.chunk_store, self.catalog, store_settings=self.store_settings
        )

    def open(self):
        return repository.connect(
            self.chunk_store, self.catalog, store_settings=self.store_settings
        )


@pytest.fixture
def place(request, tmp_path):
    """Make a place: of files or a bucket, and a kind of catalog."""

    def make(store, catalog):
        number = next(_numbers)
        folder = tmp_path / f'folder-{number}'
        folder.mkdir()
        settings = None
        if catalog == 'sqlite':
            url = f'sqlite:///{folder}/catalog.sqlite'
        else:
            server = request.getfixturevalue(catalog)
            url = server.create(f'copies_{number}_{time.time_ns()}')
        chunks = (folder / 'chunks').as_uri()
        if store == 's3':
            gateway = request.getfixturevalue('gateway')
            settings = gateway.settings()
            chunks = f's3://{gateways.BUCKET}/copies-{number}/chunks'
        elif store == 'disks':
            (folder / 'b').mkdir()
            chunks = f'file://{folder}/a,{folder}/b'
        return Place(folder, chunks, url, settings)

    return make


def fill(repo, chunks=300):
    """Images with histories, clones and holes."""
    draw = random.Random(5)
    for name in ('debian', 'rocky'):
        data = [
            bytes(CHUNK) if index % 4 == 3 else draw.randbytes(CHUNK)
            for index in range(chunks)
        ]
        repo.create(
            data, blob_id=f'id-{name}', name=name, chunk_size_bytes=CHUNK
        )
    for number in range(1, 4):
        write(repo, 'id-debian', number, draw)
    repo.catalog.delete_version('id-debian', 2)
    repo.clone('id-debian', 1, blob_id='web', name='web')
    write(repo, 'web', 1, draw)
    repo.clone(
        'web', None, blob_id='grown', size_bytes=70000 * CHUNK, name='grown'
    )


def write(repo, blob_id, parent, draw):
    blob = repo.catalog.get(blob_id)
    head = repo.catalog.version(blob_id)
    assert head.number == parent
    manifest = repo.manifest(head.root, blob.scope)
    with repo.commit(blob, manifest, size_bytes=head.size_bytes) as commit:
        for _ in range(5):
            index = draw.randrange(head.size_bytes // CHUNK)
            commit.put(index, draw.randbytes(CHUNK))
        repo.catalog.publish(
            blob_id,
            epoch=blob.epoch,
            parent=parent,
            commit_id=f'{blob_id} after {parent}',
            root=commit.finish(),
            size_bytes=head.size_bytes,
            session_id=commit.session_id,
        )


def copy_all(source, target):
    return [
        copying.Copy(
            source, target, version, source.catalog.get(version.blob_id)
        ).run()
        for blob in source.catalog.list_blobs()
        for version in source.catalog.versions(blob.id)
    ]


def objects(repo):
    return dict(repo.store.list())


def assert_same(source, target):
    versions = source.catalog.list_versions()
    assert target.catalog.list_versions() == versions
    for blob in source.catalog.list_blobs():
        assert target.catalog.get(blob.id) == blob
    assert objects(target) == objects(source)
    for version in versions:
        name = version.blob_id, version.number
        assert target.verify(*name).is_sound
    assert target.account().missing_objects == 0


@pytest.mark.parametrize(
    'ends',
    [
        (('file', 'sqlite'), ('s3', 'mariadb')),
        (('s3', 'postgresql'), ('disks', 'sqlite')),
        (('file', 'mariadb'), ('file', 'postgresql')),
    ],
    ids=lambda ends: '-'.join(itertools.chain(*ends)),
)
def test_a_repository_moves_to_other_engines(place, ends):
    source, target = (place(*end).make() for end in ends)
    fill(source)
    # What was uploaded and belongs to no version any more stays behind.
    wanted = objects(source)
    account = source.account()
    assert account.unreferenced_objects > 0
    with copy_plan.Plan(source) as plan:
        for blob in source.catalog.list_blobs():
            for version in source.catalog.versions(blob.id):
                plan.add(copying.Copy(source, target, version, blob))
        planned = plan.objects, plan.size_bytes()
    done = copy_all(source, target)
    assert planned == (
        sum(result.copied_objects for result in done),
        sum(result.copied_bytes for result in done),
    )
    assert planned[0] == len(wanted) - account.unreferenced_objects
    for name in set(wanted) - set(objects(target)):
        source.store.delete(name)
    assert_same(source, target)
    assert not any(result.is_new for result in copy_all(source, target))
    source.close()
    target.close()


@pytest.mark.timeout(300)  # On a busy machine; it begins many processes.
def test_a_copy_that_is_killed_again_and_again_gets_there(place, rng):
    """The command itself, over the network, wherever death meets it."""
    here, there = place('file', 'sqlite'), place('s3', 'mariadb')
    source, target = here.make(), there.make()
    fill(source, chunks=120)
    command = [*COMMAND, '--config-file', str(here.config_file), 'copy']
    command += ['--all', '--to-config-file', str(there.config_file)]
    in_the_midst, seen = 0, set()
    for attempt in range(20):
        process = subprocess.Popen(
            [*command, '--threads', '2'],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        # Later each time, so that it gets there on a busy machine, too.
        seconds = 0.5 * 1.4**attempt * rng.uniform(0.8, 1)
        try:
            _, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            in_the_midst += bool(target.catalog.sessions())
        else:
            assert process.returncode == 0, err
            break
        for version in target.catalog.list_versions():
            name = version.blob_id, version.number
            if name not in seen:
                assert target.verify(*name).is_sound
                seen.add(name)
    else:
        pytest.fail('it never came to its end')
    assert in_the_midst, 'no kill met it at work: this proves nothing'
    for name in set(objects(source)) - set(objects(target)):
        source.store.delete(name)
    assert_same(source, target)
    for session in target.catalog.sessions():
        target.catalog.end_session(session.id)
    source.close()
    target.close()


@pytest.mark.parametrize(
    'kinds', [('sqlite', 'mariadb', 'postgresql', 'sqlite')]
)
def test_a_catalog_goes_from_database_to_database(place, kinds):
    """Round by way of each, and is the same in the end."""
    here = place('file', kinds[0])
    source = here.make()
    fill(source)
    location = source.catalog.mint_location('web', 1)
    url = here.catalog
    for kind in kinds[1:]:
        following = place('file', kind).catalog
        moving.move(url, following)
        url = following
    target = repository.connect(here.chunk_store, url)
    assert target.info == source.info
    assert target.catalog.check_location(location).blob_id == 'web'
    assert_same(source, target)
    source.close()
    target.close()


def test_memory_does_not_grow_with_the_disk(place, tmp_path):
    """A process of its own tells its peak, small disk and large one."""
    peaks = []
    for count in (64, 2048):
        here, there = place('file', 'sqlite'), place('file', 'sqlite')
        source = here.make()
        there.make().close()
        draw = random.Random(count)
        source.create(
            (draw.randbytes(128 << 10) for _ in range(count)),
            blob_id='image',
            chunk_size_bytes=128 << 10,
        )
        source.close()
        command = [*COMMAND, '--config-file', str(here.config_file), 'copy']
        command += ['--all', '--to-config-file', str(there.config_file)]
        peaks.append(peak_of(command))
    assert peaks[1] < peaks[0] + (24 << 20), peaks


def peak_of(command):
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss * 1024


def test_an_import_by_way_of_a_pipe_and_a_copy_agree(place):
    """The same content has the same root, whichever way it came."""
    source, target = (place('file', 'sqlite').make() for _ in range(2))
    data = random.Random(3).randbytes(50 * CHUNK + 7)
    version = source.create(
        [data[:9], importing.Hole(0), data[9:]],
        blob_id='a',
        chunk_size_bytes=CHUNK,
    )
    copying.Copy(source, target, version, source.catalog.get('a')).run()
    again = target.create([data], blob_id='b', chunk_size_bytes=CHUNK)
    assert again.root == version.root
    source.close()
    target.close()
