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
"""The operations of a repository, each so that it can be told how it ended.

Each is a procedure of lazyblob/CRASHES.rst. It is *prepared* by somebody whom
nothing befalls, *run* by a process that may die or fail (``dying.py``), run
again by one that does not, and *checked*. A key makes what it makes its own.
"""

import contextlib
import hashlib
import pathlib
import random

import sqlalchemy as sa

from lazyblob import copying
from lazyblob import digest
from lazyblob import exceptions
from lazyblob import repairing
from lazyblob import repository
from lazyblob.catalog import api
from lazyblob.catalog import engine
from lazyblob.catalog import schema

UUID = 'a17d9456-1e6a-432f-8106-d94426790c5e'
CHUNK = 4096
SIZES = {'chunk_size_bytes': CHUNK}
#: The chunks of an image that are no holes; between those of a deep one lies
#: a hole as long as a node.
PLACES = (0, 2)
DEEP = (0, 300)
#: As large that the tree of a grown image has levels more.
LARGE_BYTES = 70000 * CHUNK


def chunk(key, index):
    return random.Random(f'{key}:{index}').randbytes(CHUNK)


def stream(key, places=PLACES):
    last = -1
    for index in places:
        if index > last + 1:
            yield repository.Hole((index - last - 1) * CHUNK)
        yield chunk(key, index)
        last = index


def content(key, places=PLACES):
    return {index: chunk(key, index) for index in places}


class Operation:
    """One procedure.

    :ivar title: its table in the page
    :ivar damaged: blobs that :meth:`prepare` damages and it mends
    :ivar needs_empty: it begins where no repository is yet
    :ivar leaves_garbage: objects that nothing reaches, though it succeeds
    :ivar folder: for files beside the repository; set before :meth:`prepare`
    """

    title = ''
    damaged = ()
    needs_empty = False
    leaves_garbage = False
    folder = ''

    def prepare(self, repo, key):
        """What has to be there; of an empty place ``repo`` is the place."""

    def run(self, world, key):
        """What it answers, as plain data that is the same every time."""
        raise NotImplementedError

    def check(self, repo, key, answer):
        """What it promises."""


def plain(version):
    return [version.blob_id, version.number, version.root, version.size_bytes]


def read_chunks(repo, blob_id, number=None):
    """All chunks of a version that are no holes."""
    reader = repo.open(blob_id, number)
    version = repo.catalog.version(blob_id, number)
    scope = repo.catalog.get(blob_id).scope
    return {
        index: reader.read(index * CHUNK, CHUNK)
        for index, _name in repo.manifest(version.root, scope).chunks()
    }


def create(repo, blob_id, key, places=PLACES, name=''):
    """A repeat is refused if the first call came to its end."""
    try:
        made = repo.create(
            stream(key, places),
            blob_id=blob_id,
            name=name,
            threads=1,
            **SIZES,
        )
    except exceptions.Conflict as exc:
        assert f'"{blob_id}" is used already' in str(exc), exc
        made = repo.catalog.version(blob_id)
    return plain(made)


class Create(Operation):
    title = 'Create'

    def run(self, world, key):
        return create(
            world.connect(), f'image-{key}', key, DEEP, f'name-{key}'
        )

    def check(self, repo, key, answer):
        assert answer == plain(repo.catalog.version(f'image-{key}', 1))
        assert read_chunks(repo, f'image-{key}') == content(key, DEEP)
        assert repo.catalog.find(f'name-{key}').id == f'image-{key}'


class Again(Operation):
    """An import of what is there, in part damaged."""

    title = 'Create, over what is damaged'

    def prepare(self, repo, key):
        made = repo.create(stream(key), blob_id=f'first-{key}', **SIZES)
        self.damaged = (f'first-{key}',)
        for name in (
            repo.manifest(made.root).get(2),
            bytes.fromhex(made.root),
        ):
            data = bytearray(repo.store.get(name, 1 << 20))
            data[-1] ^= 1
            repo.store.replace(name, data)

    def run(self, world, key):
        return create(world.connect(), f'second-{key}', key)

    def check(self, repo, key, answer):
        for which in ('first', 'second'):
            assert repo.verify(f'{which}-{key}').is_sound
            assert read_chunks(repo, f'{which}-{key}') == content(key)


class Commit(Operation):
    title = 'Commit'

    def prepare(self, repo, key):
        repo.create(stream(key), blob_id=f'image-{key}', **SIZES)

    def changes(self, key):
        return {0: bytes(CHUNK), 1: chunk(key, 'new'), 2: chunk(key, 2)}

    def run(self, world, key):
        repo = world.connect()
        blob = repo.catalog.get(f'image-{key}')
        parent = repo.catalog.version(blob.id, 1)
        with repo.commit(
            blob,
            repo.manifest(parent.root, blob.scope),
            size_bytes=parent.size_bytes,
        ) as target:
            for index, data in self.changes(key).items():
                target.put(index, data)
            made = target.publish(
                blob.id,
                epoch=blob.epoch,
                parent=parent.number,
                commit_id=f'commit-{key}',
                root=target.finish(),
                size_bytes=parent.size_bytes,
            )
        return plain(made)

    def check(self, repo, key, answer):
        expected = self.changes(key)
        del expected[0]
        assert answer == plain(repo.catalog.version(f'image-{key}', 2))
        assert read_chunks(repo, f'image-{key}', 2) == expected
        assert read_chunks(repo, f'image-{key}', 1) == content(key)


class Snapshot(Operation):
    """As an agent does it: it claims the disk and asks what landed."""

    title = 'Commit, with an image'

    def prepare(self, repo, key):
        repo.create(stream(key), blob_id=f'image-{key}', **SIZES)
        repo.clone(f'image-{key}', blob_id=f'disk-{key}', kind=api.Kind.DISK)

    def run(self, world, key):
        repo = world.connect()
        disk, secret = f'disk-{key}', f'secret-{key}'
        epoch = repo.catalog.claim(disk, secret)
        landed = repo.catalog.find_commit(disk, f'commit-{key}')
        if landed is not None:
            return plain(landed)
        blob = repo.catalog.get(disk)
        parent = repo.catalog.version(disk)
        with repo.commit(
            blob,
            repo.manifest(parent.root, blob.scope),
            size_bytes=parent.size_bytes,
        ) as target:
            target.put(2, chunk(key, 'new'))
            made = target.publish(
                disk,
                epoch=epoch,
                parent=parent.number,
                commit_id=f'commit-{key}',
                root=target.finish(),
                size_bytes=parent.size_bytes,
                secret=secret,
                image=api.NewImage(f'snapshot-{key}', ''),
                drop_parent=True,
            )
        return plain(made)

    def check(self, repo, key, answer):
        expected = content(key) | {2: chunk(key, 'new')}
        for blob in (f'disk-{key}', f'snapshot-{key}'):
            assert read_chunks(repo, blob) == expected
        assert read_chunks(repo, f'image-{key}') == content(key)
        assert repo.catalog.version(f'snapshot-{key}').root == answer[2]
        # The one that the mirror reads stays; nothing came twice.
        numbers = [v.number for v in repo.catalog.versions(f'disk-{key}')]
        assert numbers == [1, 2]


class Clone(Operation):
    title = 'Clone'

    def prepare(self, repo, key):
        repo.create(stream(key), blob_id=f'image-{key}', **SIZES)

    def run(self, world, key):
        return plain(
            world.connect().clone(f'image-{key}', blob_id=f'clone-{key}')
        )

    def check(self, repo, key, answer):
        repo.delete(f'image-{key}')
        assert read_chunks(repo, f'clone-{key}') == content(key)


class Larger(Operation):
    title = 'Clone, larger'

    def prepare(self, repo, key):
        repo.create(stream(key), blob_id=f'image-{key}', **SIZES)

    def run(self, world, key):
        made = world.connect().clone(
            f'image-{key}', blob_id=f'clone-{key}', size_bytes=LARGE_BYTES
        )
        return plain(made)

    def check(self, repo, key, answer):
        assert answer[1] == 2 and answer[3] == LARGE_BYTES
        versions = repo.catalog.versions(f'clone-{key}')
        assert [plain(version) for version in versions] == [answer]
        assert read_chunks(repo, f'clone-{key}') == content(key)
        assert repo.open(f'clone-{key}').read(LARGE_BYTES - 9, 99) == bytes(9)


class Claim(Operation):
    title = 'Claim'

    def prepare(self, repo, key):
        repo.create(stream(key), blob_id=f'image-{key}', **SIZES)

    def run(self, world, key):
        # Each claim is an epoch more; which one, nobody promises.
        world.connect().catalog.claim(f'image-{key}', 'secret')
        return 'claimed'

    def check(self, repo, key, answer):
        assert repo.catalog.get(f'image-{key}').epoch > 1
        assert repo.catalog.claim(f'image-{key}', 'secret') > 2
        assert read_chunks(repo, f'image-{key}') == content(key)
        repo.delete(f'image-{key}', secret='secret')


class Delete(Operation):
    title = 'Delete a blob'
    leaves_garbage = True

    def prepare(self, repo, key):
        repo.create(stream(key), blob_id=f'image-{key}', **SIZES)
        repo.clone(f'image-{key}', blob_id=f'clone-{key}')

    def run(self, world, key):
        with contextlib.suppress(exceptions.NotFound):
            world.connect().delete(f'image-{key}')
        return 'gone'

    def check(self, repo, key, answer):
        with contextlib.suppress(exceptions.NotFound):
            raise AssertionError(repo.catalog.get(f'image-{key}'))
        assert read_chunks(repo, f'clone-{key}') == content(key)


class DeleteVersion(Commit):
    title = 'Delete a version'
    leaves_garbage = True

    def prepare(self, repo, key):
        super().prepare(repo, key)
        super().run(Opened(repo), key)

    def run(self, world, key):
        with contextlib.suppress(exceptions.NotFound):
            world.connect().catalog.delete_version(f'image-{key}', 1)
        return 'gone'

    def check(self, repo, key, answer):
        versions = repo.catalog.versions(f'image-{key}')
        assert [version.number for version in versions] == [2]
        assert read_chunks(repo, f'image-{key}')[2] == chunk(key, 2)


class Opened:
    """A world of one repository that is open already."""

    def __init__(self, repo):
        self._repo = repo

    def connect(self):
        return self._repo


class Export(Operation):
    title = 'Export'

    def prepare(self, repo, key):
        repo.create(stream(key), blob_id=f'image-{key}', **SIZES)

    def run(self, world, key):
        path = pathlib.Path(world.folder, f'{key}.raw')
        world.connect().export(f'image-{key}', None, path)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    def check(self, repo, key, answer):
        expected = hashlib.sha256()
        for piece in stream(key):
            if isinstance(piece, repository.Hole):
                piece = bytes(piece.size_bytes)
            expected.update(piece)
        assert answer == expected.hexdigest()


class Verify(Operation):
    """Changes nothing: it has no table, and is only let fail."""

    def prepare(self, repo, key):
        repo.create(stream(key), blob_id=f'image-{key}', **SIZES)

    def run(self, world, key):
        found = world.connect().verify(f'image-{key}')
        faults = [fault.reason for fault in found.faults.values()]
        if faults:
            # What a disk cannot read is reported, and no error of the run.
            raise exceptions.StoreError(f'"{key}": {"; ".join(faults)}')
        return found.chunk_count

    def check(self, repo, key, answer):
        assert answer == len(PLACES)


class Beside(Operation):
    """One that reads from another repository, in files beside this one."""

    source_scope = 'repository'

    @contextlib.contextmanager
    def source(self, folder):
        """Made once for all that are beside one repository."""
        path = pathlib.Path(folder, f'other-{self.source_scope}')
        urls = repository.urls_of(path.as_uri())
        if path.exists():
            source = repository.connect(*urls)
        else:
            source = repository.initialise(
                *urls, dedupe_scope=self.source_scope
            )
        yield source
        source.close()


class Copy(Beside):
    title = 'Copy'

    def prepare(self, repo, key):
        with self.source(self.folder) as source:
            source.create(stream(key, DEEP), blob_id=f'image-{key}', **SIZES)
            Commit().run(Opened(source), key)

    def run(self, world, key):
        target = world.connect()
        with self.source(world.folder) as source:
            blob = source.catalog.get(f'image-{key}')
            results = [
                copying.Copy(source, target, version, blob, threads=1).run()
                for version in source.catalog.versions(blob.id)
            ]
        return [plain(result.version) for result in results]

    def check(self, repo, key, answer):
        assert answer == [
            plain(version) for version in repo.catalog.versions(f'image-{key}')
        ]
        whole = content(key, DEEP)
        assert read_chunks(repo, f'image-{key}', 1) == whole
        del whole[0]
        whole |= Commit().changes(key)
        del whole[0]
        assert read_chunks(repo, f'image-{key}', 2) == whole


class CopyContents(Copy):
    title = 'Copy, from another dedupe scope'
    source_scope = 'project'


class Repair(Beside):
    """Of a chunk that is missing and one that is damaged."""

    title = 'Repair'

    def prepare(self, repo, key):
        with self.source(self.folder) as source:
            for each in (source, repo):
                made = each.create(
                    stream(key), blob_id=f'image-{key}', **SIZES
                )
        self.damaged = (made.blob_id,)
        manifest = repo.manifest(made.root)
        repo.store.delete(manifest.get(0))
        data = bytearray(repo.store.get(manifest.get(2), 1 << 20))
        data[-1] ^= 1
        repo.store.replace(manifest.get(2), data)

    def run(self, world, key):
        with self.source(world.folder) as source:
            found = world.connect().repair(
                [repairing.StoreSource(source.store)], f'image-{key}'
            )
        if found.lost:
            # What no source gives is reported, and no error of the run.
            reasons = '; '.join(fault.reason for fault in found.lost.values())
            raise exceptions.StoreError(f'"{key}": {reasons}')
        return 'nothing is lost'

    def check(self, repo, key, answer):
        assert read_chunks(repo, f'image-{key}') == content(key)
        assert list(repo.catalog.bad_digests()) == []


class Init(Operation):
    title = 'Init'
    needs_empty = True

    def run(self, world, key):
        made = world.initialise()
        return made.catalog.repository().dedupe_scope

    def check(self, repo, key, answer):
        made = repo.create(stream(key), blob_id='image', **SIZES)
        assert read_chunks(repo, made.blob_id) == content(key)
        repo.delete('image')


class Upgrade(Init):
    """Of a catalog that the first release made."""

    title = 'Init, of an older catalog'

    def prepare(self, place, key):
        schema.upgrade(place.catalog, '0001')
        bind = engine.create(place.catalog)
        with bind.begin() as connection:
            connection.execute(
                sa.text(
                    'INSERT INTO repository (id, uuid, format_version, '
                    'dedupe_scope, chunk_store, secret, created_at) VALUES '
                    '(1, :uuid, 1, :scope, :store, :secret, :now)'
                ),
                {
                    'uuid': UUID,
                    'scope': 'repository',
                    'store': place.chunk_store,
                    'secret': 64 * '1',
                    'now': '2026-01-01 00:00:00',
                },
            )
        bind.dispose()

    def check(self, repo, key, answer):
        assert repo.info.uuid == UUID
        super().check(repo, key, answer)


class AnotherDisk(Init):
    """A disk more, for a store of several; else the same once more."""

    title = 'Init, with a disk more'

    def prepare(self, place, key):
        whole = place.chunk_store
        place.chunk_store = whole.rpartition(',')[0] or whole
        repo = place.initialise()
        repo.create(stream(key), blob_id='before', **SIZES)
        repo.close()
        place.chunk_store = whole
        place.is_moved = True

    def check(self, repo, key, answer):
        assert read_chunks(repo, 'before') == content(key)
        super().check(repo, f'{key}-other', answer)


OPERATIONS = {
    kind.__name__: kind
    for kind in (
        *(Create, Again, Commit, Snapshot, Clone, Larger, Claim),
        *(Delete, DeleteVersion, Export, Verify),
        *(Copy, CopyContents, Repair),
        *(Init, Upgrade, AnotherDisk),
    )
}


def reachable(repo):
    """The names of all objects that versions need."""
    found = set()
    for version in repo.catalog.list_versions(limit=10000):
        keys = digest.keys(repo.catalog.get(version.blob_id).scope)
        manifest = repo.tree(version.root).load()
        encoded = manifest.encode(keys)
        found.add(encoded.root)
        found.update(name for name, _ in encoded.nodes)
        found.update(name for _, name in manifest.chunks())
    return found


def unreferenced(repo):
    return {name for name, _ in repo.store.list()} - reachable(repo)


def audit(repo, damaged=()):
    """Every version can be read back in full.

    :param damaged: blobs of which this is not yet true
    :returns: how many were read
    """
    versions = [
        version
        for version in repo.catalog.list_versions(limit=10000)
        if version.blob_id not in damaged
    ]
    for version in versions:
        report = repo.verify(version.blob_id, version.number)
        assert report.is_sound, (version, report)
    return len(versions)
