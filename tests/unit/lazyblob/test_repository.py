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
"""The repository: from a stream to a version and back, and what goes wrong."""

import itertools
import os
import pathlib
import random
import shutil
import threading
import uuid

import pytest
from hypothesis import HealthCheck
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from lazyblob import exceptions
from lazyblob import importing
from lazyblob import patience
from lazyblob import repository
from lazyblob.catalog import api
from lazyblob.chunk_store import objects

CHUNK = 4096
SIZES = {'chunk_size_bytes': CHUNK}


def some_data(chunks=12, seed=1, holes=(3, 4, 8), tail=100):
    """A disk with holes whose last chunk is not whole."""
    draw = random.Random(seed)
    parts = [
        bytes(CHUNK) if index in holes else draw.randbytes(CHUNK)
        for index in range(chunks)
    ]
    return b''.join(parts) + draw.randbytes(tail)


DATA = some_data()


def whole(repo, blob_id, version=None):
    return b''.join(repo.open(blob_id, version).stream())


def stored(repo):
    return dict(repo.store.list())


@pytest.fixture
def image(repo):
    return repo.create([DATA], blob_id='image', name='debian', **SIZES)


@pytest.fixture
def disk(repo, image):
    """A clone with a writer: its blob as the catalog has it."""
    repo.clone('image', blob_id='disk', kind=api.Kind.DISK)
    repo.catalog.claim('disk', 'secret')
    return repo.catalog.get('disk')


def write(repo, disk, chunks, **changed):
    """Commit and publish chunks on top of the head."""
    head = repo.catalog.version('disk')
    parent = repo.manifest(head.root)
    size = changed.pop('size_bytes', head.size_bytes)
    with repo.commit(disk, parent, size_bytes=size) as commit:
        for index, data in chunks.items():
            commit.put(index, data)
        root = commit.finish()
        arguments = {
            'epoch': disk.epoch,
            'parent': head.number,
            'commit_id': f'commit after {head.number}',
            'session_id': commit.session_id,
            'secret': 'secret',
            **changed,
        }
        return repo.catalog.publish(
            'disk', root=root, size_bytes=size, **arguments
        )


class TestCreate:
    def test_what_was_stored_reads_back(self, repo, image):
        assert image.size_bytes == len(DATA)
        assert whole(repo, 'image') == DATA
        assert repo.catalog.find('debian').id == 'image'

    @settings(
        suppress_health_check=[HealthCheck.function_scoped_fixture],
        max_examples=20,
        deadline=None,
    )
    @given(
        st.sets(st.integers(1, len(DATA) - 1)),
        st.randoms(use_true_random=False),
    )
    def test_any_pieces_give_the_same_version(self, repo, image, cuts, draw):
        """Bytes, views, bytearrays, holes: cut where one likes."""
        pieces = []
        places = sorted({0, 3 * CHUNK, 5 * CHUNK, len(DATA), *cuts})
        for at, end in itertools.pairwise(places):
            piece = DATA[at:end]
            if not piece.strip(b'\0'):
                pieces.append(repository.Hole(len(piece)))
            else:
                kind = draw.choice([bytes, bytearray, memoryview])
                pieces.append(kind(piece))
        blob_id = str(uuid.uuid4())
        version = repo.create(pieces, blob_id=blob_id, **SIZES)
        assert version.root == image.root

    def test_holes_and_copies_are_not_stored(self, repo):
        block = random.Random(1).randbytes(CHUNK)
        stream = [repository.Hole(1 << 40), *[block] * 5, bytes(9 * CHUNK)]
        version = repo.create(stream, blob_id='image', **SIZES)
        assert version.size_bytes == (1 << 40) + 14 * CHUNK
        found = stored(repo)
        # One chunk, a leaf, its ancestors, the descriptor.
        assert len(found) == 1 + 4 + 1
        reader = repo.open('image')
        assert reader.read((1 << 40) - 10, 20) == bytes(10) + block[:10]

    def test_an_empty_image_is_an_image(self, repo):
        version = repo.create([], blob_id='image')
        assert version.size_bytes == 0
        assert whole(repo, 'image') == b''
        assert repo.verify('image').is_sound

    @pytest.mark.parametrize('told', [len(DATA) - 1, len(DATA) + 1, 0])
    def test_a_size_that_lies_leaves_nothing_behind(self, repo, told):
        with pytest.raises(exceptions.SizeMismatch, match=str(told)):
            repo.create([DATA], blob_id='image', size_bytes=told, **SIZES)
        assert repo.catalog.list_blobs() == []
        repo.create([DATA], blob_id='image', size_bytes=len(DATA), **SIZES)

    def test_a_stream_that_breaks_off_leaves_nothing_behind(self, repo):
        def stream():
            yield DATA
            raise ConnectionError('the client went away')

        with pytest.raises(ConnectionError, match='went away'):
            repo.create(stream(), blob_id='image', name='debian', **SIZES)
        assert repo.catalog.list_blobs() == []
        assert threading.active_count() == 1
        repo.create([DATA], blob_id='image', name='debian', **SIZES)

    def test_a_used_id_or_name_is_refused_before_the_upload(self, repo, image):
        def stream():
            pytest.fail('the stream was read')
            yield b''

        with pytest.raises(exceptions.Conflict, match='image'):
            repo.create(stream(), blob_id='image', **SIZES)
        with pytest.raises(exceptions.Conflict, match='debian'):
            repo.create(stream(), blob_id='new', name='debian', **SIZES)

    def test_progress_and_statistics_are_told(self, repo):
        told = []
        statistics = repository.committing.Statistics()
        repo.create(
            [DATA[: 5 * CHUNK], DATA[5 * CHUNK :]],
            blob_id='image',
            progress=told.append,
            statistics=statistics,
            **SIZES,
        )
        assert told == [5 * CHUNK, len(DATA)]
        assert statistics.zero_chunks == 3
        assert statistics.stored_chunks == 10
        assert statistics.written_bytes == sum(stored(repo).values())


class TestRead:
    @settings(
        suppress_health_check=[HealthCheck.function_scoped_fixture],
        max_examples=50,
        deadline=None,
    )
    @given(st.integers(0, len(DATA) + 10), st.integers(0, len(DATA) + 10))
    def test_any_range_reads_as_the_bytes_themselves(
        self, repo, image, offset, length
    ):
        reader = repo.open('image', 1)
        expected = DATA[offset : offset + length]
        assert reader.read(offset, length) == expected
        assert b''.join(reader.stream(offset, length)) == expected

    def test_a_stream_that_is_left_ends_its_threads(self, repo, image):
        stream = repo.open('image').stream()
        next(stream)
        stream.close()
        assert threading.active_count() == 1

    def test_a_damaged_chunk_is_an_error_for_its_range_only(self, repo, image):
        name = repo.manifest(image.root).get(1)
        damage(repo, name)
        reader = repo.open('image')
        with pytest.raises(exceptions.ChunkCorrupt, match=name.hex()):
            reader.read(CHUNK, 1)
        assert reader.read(0, CHUNK) == DATA[:CHUNK]
        rest = reader.read(2 * CHUNK, len(DATA))
        assert rest == DATA[2 * CHUNK :]
        with pytest.raises(exceptions.ChunkCorrupt):
            list(reader.stream())

    def test_an_export_is_the_disk_and_sparse(self, repo, image, tmp_path):
        path = tmp_path / 'disk.raw'
        repo.export('image', None, path)
        assert path.read_bytes() == DATA
        holes = repo.create(
            [repository.Hole(1 << 30), b'end'], blob_id='sparse'
        )
        repo.export('sparse', 1, path)
        assert path.stat().st_size == holes.size_bytes
        assert path.stat().st_blocks * 512 < 1 << 20
        assert sorted(p.name for p in tmp_path.iterdir()) == [
            'disk.raw',
            'repository',
        ]

    def test_an_export_that_fails_leaves_no_file(self, repo, image, tmp_path):
        damage(repo, repo.manifest(image.root).get(1))
        with pytest.raises(exceptions.ChunkCorrupt):
            repo.export('image', None, tmp_path / 'disk.raw')
        with pytest.raises(exceptions.InvalidConfiguration, match='nix'):
            repo.export('image', None, tmp_path / 'nix' / 'disk.raw')
        assert [p.name for p in tmp_path.iterdir()] == ['repository']


def path_of(repo, name):
    root = pathlib.Path(repo.store.url.removeprefix('file://'))
    return root / objects.key(name)


def damage(repo, name):
    path = path_of(repo, name)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


class TestImportAgain:
    """An import has the right bytes at hand; what it finds bad goes."""

    def again(self, repo):
        repo.create([DATA], blob_id='again', **SIZES)

    def test_what_is_sound_is_left_alone(self, repo, image):
        before = {
            name: os.stat(path_of(repo, name)).st_ino for name in stored(repo)
        }
        self.again(repo)
        assert before == {
            name: os.stat(path_of(repo, name)).st_ino for name in stored(repo)
        }

    def test_every_damaged_object_is_replaced(self, repo, image, expect_logs):
        names = list(stored(repo))
        for name in names:
            damage(repo, name)
        with expect_logs('was damaged in', len(names)):
            self.again(repo)
        assert repo.verify('image').is_sound
        assert whole(repo, 'image') == DATA

    def test_another_content_under_a_name_is_replaced(
        self, repo, image, expect_logs
    ):
        first, second, *_ = repo.manifest(image.root).chunks()
        shutil.copy(path_of(repo, first[1]), path_of(repo, second[1]))
        with expect_logs('was damaged in'):
            self.again(repo)
        assert repo.verify('image').is_sound

    def test_what_is_far_too_large_is_replaced_unread(
        self, repo, image, expect_logs
    ):
        name = repo.manifest(image.root).get(0)
        os.truncate(path_of(repo, name), 1 << 40)
        self.again(repo)
        assert repo.verify('image').is_sound

    def test_what_cannot_be_read_is_replaced(
        self, repo, image, expect_logs, monkeypatch
    ):
        """A sector that is gone, under its header or behind it."""
        names = [name for _, name in repo.manifest(image.root).chunks()][:2]
        names.append(bytes.fromhex(image.root))

        def failing(real, bad):
            def call(name, *more):
                if name == bad:
                    raise exceptions.StoreError('Input/output error')
                return real(name, *more)

            return call

        for call, name in zip(('has', 'get', 'has'), names, strict=True):
            real = getattr(repo.store, call)
            monkeypatch.setattr(repo.store, call, failing(real, name))
            damage(repo, name)
        with expect_logs('was damaged in', 3):
            self.again(repo)
        monkeypatch.undo()
        assert repo.verify('image').is_sound

    @pytest.mark.parametrize(
        'kind', [exceptions.TemporaryStoreError, exceptions.StoreDenied]
    )
    def test_what_cannot_be_read_for_now_is_no_damage(
        self, repo, image, monkeypatch, kind
    ):
        def fail(name, *more):
            raise kind('another time')

        for call in ('has', 'get'):
            with monkeypatch.context() as patch:
                patch.setattr(repo.store, call, fail)
                with pytest.raises(kind):
                    self.again(repo)

    def test_a_commit_believes_the_store(self, repo, disk):
        """It is a guest's, and pays for no reading back."""
        name = repo.manifest(repo.catalog.version('image').root).get(0)
        damage(repo, name)
        write(repo, disk, {5: DATA[:CHUNK]})
        assert not repo.verify('disk').is_sound


class TestCommit:
    def test_a_version_is_the_parent_with_what_was_put(self, repo, disk):
        new = random.Random(2).randbytes(CHUNK)
        version = write(repo, disk, {0: new, 1: bytes(CHUNK), 3: new})
        expected = new + bytes(CHUNK) + DATA[2 * CHUNK : 3 * CHUNK] + new
        assert whole(repo, 'disk') == expected + DATA[4 * CHUNK :]
        assert whole(repo, 'disk', 1) == whole(repo, 'image') == DATA
        assert version.number == 2
        found = repo.diff(repo.catalog.version('image'), version)
        assert [d.index for d in found] == [0, 1, 3]

    def test_each_chunk_has_its_outcome(self, repo, disk):
        head = repo.catalog.version('disk')
        parent = repo.manifest(head.root)
        before = stored(repo)
        with repo.commit(disk, parent, size_bytes=head.size_bytes) as commit:
            new = random.Random(3).randbytes(CHUNK)
            assert commit.put(0, DATA[:CHUNK]) == 'unchanged'
            assert commit.put(1, bytes(CHUNK)) == 'zero'
            assert commit.put(2, DATA[:CHUNK]) == 'known'
            assert commit.put(3, new) == 'stored'
            commit.finish()
            statistics = commit.statistics
        assert statistics.stored_bytes == CHUNK
        # The chunk, a leaf and a descriptor: nothing else was uploaded.
        assert len(stored(repo)) == len(before) + 3

    def test_a_commit_without_changes_is_its_parent(self, repo, disk):
        version = write(repo, disk, {})
        assert version.root == repo.catalog.version('image').root

    def test_a_disk_may_grow_and_not_shrink(self, repo, disk):
        size = 300 * CHUNK
        version = write(repo, disk, {299: b'x' * CHUNK}, size_bytes=size)
        expected = DATA.ljust(299 * CHUNK, b'\0') + b'x' * CHUNK
        assert whole(repo, 'disk') == expected
        # As if it had been stored so at once.
        same = repo.create([expected], blob_id='same', **SIZES)
        assert same.root == version.root
        parent = repo.manifest(version.root)
        with pytest.raises(exceptions.InvalidConfiguration, match='grow'):
            repo.commit(disk, parent, size_bytes=size - 1)

    def test_a_chunk_that_failed_does_not_stand_in_the_manifest(
        self, repo, disk, monkeypatch
    ):
        head = repo.catalog.version('disk')
        parent = repo.manifest(head.root)
        new = random.Random(4).randbytes(CHUNK)

        def full(name, *parts):
            raise exceptions.StoreFull('no room')

        with repo.commit(disk, parent, size_bytes=head.size_bytes) as commit:
            with monkeypatch.context() as patch:
                patch.setattr(repo.store, 'put', full)
                with pytest.raises(exceptions.StoreFull):
                    commit.put(0, new)
            commit.put(0, new)
            root = commit.finish()
        assert repo.manifest(root).get(0) != parent.get(0)

    def test_of_two_writers_the_older_is_refused(self, repo, disk, urls):
        other = repository.connect(*urls)
        write(other, disk, {0: b'a' * CHUNK})
        with pytest.raises(exceptions.StaleWriter):
            write(repo, disk, {0: b'b' * CHUNK}, parent=1)
        # A successor takes over; the first one's epoch is old.
        other.catalog.claim('disk', 'successor')
        with pytest.raises(exceptions.StaleWriter):
            write(repo, disk, {0: b'c' * CHUNK})
        assert whole(repo, 'disk')[:CHUNK] == b'a' * CHUNK

    def test_a_commit_that_was_given_up_leaves_the_blob_alone(
        self, repo, disk
    ):
        head = repo.catalog.version('disk')
        parent = repo.manifest(head.root)
        commit = repo.commit(disk, parent, size_bytes=head.size_bytes)
        commit.put(0, b'x' * CHUNK)
        commit.abort()
        assert repo.catalog.version('disk') == head
        with pytest.raises(exceptions.Conflict, match='session'):
            repo.catalog.publish(
                'disk',
                epoch=disk.epoch,
                parent=1,
                commit_id='late',
                root=head.root,
                size_bytes=head.size_bytes,
                session_id=commit.session_id,
                secret='secret',
            )


class TestCrash:
    """Whatever fails, in whatever order: no version that cannot be read."""

    CALLS = (
        ('store', 'put'),
        ('store', 'has'),
        ('store', 'sync'),
        ('catalog', 'begin_session'),
        ('catalog', 'create'),
        ('catalog', 'publish'),
    )

    def dies_at(self, nth, repo, monkeypatch):
        """The n-th call from now on, and every later one, fails."""
        count = itertools.count(1)
        calls = []

        def wrap(part, name):
            real = getattr(getattr(repo, part), name)

            def call(*arguments, **keywords):
                calls.append(name)
                if next(count) >= nth:
                    raise exceptions.TemporaryStoreError('killed')
                return real(*arguments, **keywords)

            monkeypatch.setattr(getattr(repo, part), name, call)

        for part, name in self.CALLS:
            wrap(part, name)
        return calls

    @pytest.mark.expect_logs('was not ended')
    def test_a_kill_between_any_two_steps_leaves_only_garbage(
        self, urls, tmp_path, monkeypatch
    ):
        old = some_data(chunks=3, seed=7, holes=())
        repository.initialise(*urls).create([old], blob_id='old', **SIZES)
        for nth in itertools.count(1):
            data = some_data(seed=100 + nth)
            dying = repository.connect(*urls)
            with monkeypatch.context() as patch:
                calls = self.dies_at(nth, dying, patch)
                patch.setattr(dying.catalog, 'end_session', lambda _: None)
                try:
                    dying.create([data], blob_id=f'new-{nth}', **SIZES)
                except exceptions.StoreError:
                    done = False
                else:
                    done = True
            after = repository.connect(*urls)
            blobs = [
                blob
                for blob in after.catalog.list_blobs()
                if after.catalog.versions(blob.id)
            ]
            assert len(blobs) == 1 + done
            for blob in blobs:
                assert after.verify(blob.id).is_sound
            if done:
                break
            # What was left behind stands in nobody's way.
            again = after.create([data], blob_id=f'new-{nth}', **SIZES)
            assert whole(after, again.blob_id) == data
            after.delete(again.blob_id)
        # A look and a put for each chunk, then leaf, descriptor and the rest.
        assert nth > 2 * 10 + 5, 'too few kills: this run proves nothing'
        assert calls[0] == 'begin_session'
        assert calls[-3:] == ['sync', 'create', 'publish']

    def test_chunks_come_before_nodes_and_nodes_bottom_up(
        self, repo, monkeypatch
    ):
        order = []
        real = repo.store.put

        def put(name, *parts):
            data = b''.join(parts)
            kind = data[6]
            level = None
            if kind == 1:
                content = repository.chunk.decode(data, 1, 1 << 14)
                level = content[0]
            order.append((kind, level))
            real(name, *parts)

        monkeypatch.setattr(repo.store, 'put', put)
        stream = [DATA, repository.Hole(70000 * CHUNK), DATA]
        repo.create(stream, blob_id='image', **SIZES)
        assert order == sorted(order, key=lambda o: (o[0], o[1] or 0))
        assert order[-2:] == [(1, 2), (2, None)]

    def test_a_lost_answer_of_the_publish_is_asked_for_again(
        self, repo, monkeypatch, expect_logs
    ):
        real = repo.catalog.publish
        lost = iter([True, True])

        def publish(*arguments, **keywords):
            version = real(*arguments, **keywords)
            if next(lost, False):
                raise exceptions.CatalogUnavailable('the answer was lost')
            return version

        monkeypatch.setattr(repo.catalog, 'publish', publish)
        monkeypatch.setattr(patience, 'PAUSES_SECONDS', [0.01] * 3)
        with expect_logs('answer was lost', count=2):
            version = repo.create([DATA], blob_id='image', **SIZES)
        assert repo.catalog.versions('image') == [version]


class TestScope:
    @pytest.fixture
    def repo(self, urls):
        return repository.initialise(*urls, dedupe_scope='project')

    def test_projects_share_nothing(self, repo):
        one = repo.create([DATA], blob_id='a', project_id='p1', **SIZES)
        count = len(stored(repo))
        two = repo.create([DATA], blob_id='b', project_id='p2', **SIZES)
        assert one.root != two.root
        assert len(stored(repo)) == 2 * count
        assert whole(repo, 'a') == whole(repo, 'b') == DATA
        assert repo.verify('b').is_sound
        with pytest.raises(exceptions.Forbidden):
            repo.clone('a', blob_id='c', project_id='p2')
        repo.clone('a', blob_id='c', project_id='p1')
        assert whole(repo, 'c') == DATA
        with pytest.raises(exceptions.Conflict):
            repo.diff(one, two)


class TestSparseFiles:
    def test_holes_of_a_file_are_not_read(self, repo, tmp_path):
        path = tmp_path / 'disk.raw'
        with open(path, 'wb') as file:
            file.write(DATA)
            file.seek(1 << 30)
            file.write(DATA)
            file.truncate(3 << 30)
        with open(path, 'rb') as file:
            read = 0
            pieces = []
            for piece in importing.read_file(file):
                if not isinstance(piece, importing.Hole):
                    read += piece.size_bytes
                pieces.append(piece)
            assert read < 1 << 20
            version = repo.create(pieces, blob_id='image', **SIZES)
        assert version.size_bytes == 3 << 30
        reader = repo.open('image')
        assert reader.read(1 << 30, len(DATA)) == DATA
        assert reader.read(0, len(DATA) + 1) == DATA + b'\0'

    @pytest.mark.parametrize('start', [0, 1, CHUNK - 1])
    def test_a_file_is_the_same_as_its_bytes(
        self, repo, tmp_path, monkeypatch, start
    ):
        """Wherever data begins, in parts of whatever length."""
        monkeypatch.setattr(importing, '_EXTENT_BYTES', 3 * CHUNK + 5)
        path = tmp_path / 'disk.raw'
        with open(path, 'wb') as file:
            file.seek(2 * CHUNK + start)
            file.write(DATA)
        with open(path, 'rb') as file:
            repo.create(importing.read_file(file), blob_id='image', **SIZES)
        repo.create([path.read_bytes()], blob_id='bytes', **SIZES)
        assert whole(repo, 'image') == path.read_bytes()
        roots = {repo.catalog.version(b).root for b in ('image', 'bytes')}
        assert len(roots) == 1

    def test_a_file_that_shrinks_is_no_image(self, repo, tmp_path):
        path = tmp_path / 'disk.raw'
        path.write_bytes(DATA)
        with open(path, 'rb') as file:
            stream = list(importing.read_file(file))
            os.truncate(path, 5 * CHUNK)
            with pytest.raises(exceptions.SizeMismatch, match='ended'):
                repo.create(stream, blob_id='image', **SIZES)
        with pytest.raises(exceptions.NotFound):
            repo.catalog.get('image')

    def test_a_pipe_is_read_to_its_end(self, repo):
        reading, writing = os.pipe()

        def feed():
            with open(writing, 'wb') as file:
                file.write(DATA)

        thread = threading.Thread(target=feed)
        thread.start()
        with open(reading, 'rb') as file:
            repo.create(importing.read_pipe(file), blob_id='image', **SIZES)
        thread.join()
        assert whole(repo, 'image') == DATA


def test_a_repository_that_does_not_exist_is_not_found(tmp_path):
    repo = repository.Repository.url((tmp_path / 'nix').as_uri())
    with pytest.raises(exceptions.NotFound, match='lazyimage init'):
        repo.catalog.repository()
    assert not (tmp_path / 'nix').exists()


@pytest.mark.parametrize(
    ('chunk_store', 'catalog', 'fault'),
    [
        ('nix://bucket', 'sqlite:////x', 'nix'),
        ('/path', 'sqlite:////x', 'not a URL'),
        ('file:///x', 'nix://u:secret@host/x', r'u:\*\*\*@host'),
    ],
)
def test_urls_that_nobody_serves_are_refused(chunk_store, catalog, fault):
    with pytest.raises(exceptions.InvalidConfiguration, match=fault):
        repository.connect(chunk_store, catalog)
