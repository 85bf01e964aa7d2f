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
"""What every catalog promises, whoever implements it.

Inherit :class:`CatalogContract` in a test module and give it a fixture
``open_catalog``: a function that opens one more instance of the same, empty
catalog (dedupe scope ``repository``), as another process would.
"""

import threading

import pytest

from lazyblob import exceptions
from lazyblob.catalog import api

ROOT = 'ab' * 32
ROOT_2 = 'cd' * 32
CHUNK_BYTES = 524288
SIZE_BYTES = 10 << 20


def make(catalog, blob_id='image', root=ROOT, name='', project_id='p1'):
    """An image with one version, as an upload leaves it."""
    blob = catalog.create(
        blob_id,
        kind=api.Kind.IMAGE,
        project_id=project_id,
        chunk_size_bytes=CHUNK_BYTES,
        name=name,
    )
    catalog.begin_session('test', f'session of {blob_id}')
    return catalog.publish(
        blob_id,
        epoch=blob.epoch,
        parent=blob.head,
        commit_id=f'upload of {blob_id}',
        root=root,
        size_bytes=SIZE_BYTES,
        session_id=f'session of {blob_id}',
    )


def attach(catalog, blob_id='disk', source='image', secret='secret'):
    """A disk cloned from an image, with a writer; its epoch."""
    catalog.clone(
        source, None, blob_id=blob_id, kind=api.Kind.DISK, project_id='p1'
    )
    catalog.begin_session('test', 'writer')
    return catalog.claim(blob_id, secret)


def publish(catalog, epoch, parent=1, commit_id='c1', **changed):
    arguments = {
        'epoch': epoch,
        'parent': parent,
        'commit_id': commit_id,
        'root': ROOT_2,
        'size_bytes': SIZE_BYTES,
        'session_id': 'writer',
        'secret': 'secret',
        **changed,
    }
    return catalog.publish('disk', **arguments)


class CatalogContract:
    @pytest.fixture
    def catalog(self, open_catalog):
        opened = open_catalog()
        yield opened
        opened.close()

    def test_it_says_which_repository_it_is(self, catalog, open_catalog):
        info = catalog.repository()
        assert len(info.uuid) == 36
        assert info.format_version == 1
        assert info.dedupe_scope == 'repository'
        assert open_catalog().repository() == info

    # Blobs and versions

    def test_an_upload_is_seen_by_others(self, catalog, open_catalog):
        version = make(catalog, name='debian')
        other = open_catalog()
        blob = other.get('image')
        assert blob.head == version.number == 1
        assert blob.kind is api.Kind.IMAGE
        assert blob.state is api.State.ACTIVE
        assert (blob.name, blob.project_id) == ('debian', 'p1')
        assert blob.chunk_size_bytes == CHUNK_BYTES
        assert other.version('image') == version
        assert other.version('image', 1) == version
        assert other.versions('image') == [version]
        assert version.root == ROOT
        assert version.size_bytes == SIZE_BYTES
        assert blob in other.list_blobs()

    def test_a_blob_is_found_by_name_or_id(self, catalog):
        make(catalog, name='debian')
        assert catalog.find('debian') == catalog.find('image')

    def test_what_is_not_there_is_not_found(self, catalog):
        make(catalog)
        for look in (
            lambda: catalog.get('nix'),
            lambda: catalog.find('nix'),
            lambda: catalog.version('nix'),
            lambda: catalog.version('image', 7),
            lambda: catalog.versions('nix'),
            lambda: catalog.activate('nix'),
            lambda: catalog.delete('nix'),
            lambda: catalog.claim('nix', 's'),
            lambda: catalog.mint_location('image', 7),
            lambda: catalog.find_commit('nix', 'c'),
        ):
            with pytest.raises(exceptions.NotFound):
                look()

    def test_identifiers_differ_in_case(self, catalog):
        make(catalog, 'image', name='debian')
        make(catalog, 'Image', name='Debian')
        assert catalog.find('Debian').id == 'Image'

    def test_a_used_id_or_name_is_a_conflict(self, catalog):
        make(catalog, name='debian')
        with pytest.raises(exceptions.Conflict, match='image'):
            make(catalog)
        with pytest.raises(exceptions.Conflict, match='debian'):
            make(catalog, 'other', name='debian')
        # Without a name there is nothing to be unique.
        make(catalog, 'third')
        make(catalog, 'fourth')

    @pytest.mark.parametrize('blob_id', ['', '/', 'a/b', '../a', 'a' * 256])
    def test_an_id_that_is_no_part_of_a_path_is_refused(
        self, catalog, blob_id
    ):
        with pytest.raises(exceptions.InvalidConfiguration):
            make(catalog, blob_id)

    def test_what_a_dead_upload_left_does_not_stand_in_the_way(self, catalog):
        arguments = {
            'kind': api.Kind.IMAGE,
            'project_id': 'p1',
            'chunk_size_bytes': CHUNK_BYTES,
        }
        first = catalog.create('image', **arguments)
        assert catalog.create('image', **arguments) == first
        make(catalog)

    def test_of_two_uploads_of_one_id_the_second_is_refused(self, catalog):
        arguments = {
            'epoch': 1,
            'parent': 0,
            'size_bytes': SIZE_BYTES,
            'session_id': 'session of image',
        }
        make(catalog)
        with pytest.raises(exceptions.StaleWriter):
            catalog.publish(
                'image', commit_id='another', root=ROOT_2, **arguments
            )
        assert catalog.version('image').root == ROOT

    def test_all_versions_are_listed_by_pages(self, catalog):
        make(catalog)
        epoch = attach(catalog)
        publish(catalog, epoch)
        make(catalog, 'a')
        found, page = [], catalog.list_versions(limit=2)
        while page:
            assert len(page) <= 2
            found += page
            page = catalog.list_versions(
                page[-1].blob_id, page[-1].number, limit=2
            )
        names = [(version.blob_id, version.number) for version in found]
        assert names == [('a', 1), ('disk', 1), ('disk', 2), ('image', 1)]

    # Clones

    def test_what_came_of_a_blob_is_listed(self, catalog):
        make(catalog)
        epoch = attach(catalog)
        publish(catalog, epoch, image=api.NewImage('snapshot', 'p1'))
        assert [blob.id for blob in catalog.clones('image')] == ['disk']
        assert [blob.id for blob in catalog.clones('disk')] == ['snapshot']
        assert catalog.clones('snapshot') == []
        catalog.delete('image')
        catalog.delete('snapshot')
        assert [blob.id for blob in catalog.clones('image')] == ['disk']
        (deleted,) = catalog.clones('disk')
        assert deleted.state is api.State.TOMBSTONE

    def test_a_clone_outlives_its_source(self, catalog):
        make(catalog)
        clone = catalog.clone(
            'image',
            None,
            blob_id='disk',
            kind=api.Kind.DISK,
            project_id='p2',
        )
        assert (clone.number, clone.root) == (1, ROOT)
        catalog.delete('image')
        assert catalog.version('disk') == clone
        blob = catalog.get('disk')
        assert (blob.origin, blob.origin_version) == ('image', 1)
        assert blob.kind is api.Kind.DISK
        assert blob.project_id == 'p2'

    def test_repeating_a_clone_answers_the_first(self, catalog):
        make(catalog)
        arguments = {
            'blob_id': 'disk',
            'kind': api.Kind.DISK,
            'project_id': 'p1',
        }
        first = catalog.clone('image', None, **arguments)
        assert catalog.clone('image', None, **arguments) == first
        assert catalog.clone('image', 1, **arguments) == first
        catalog.delete('image')
        assert catalog.clone('image', None, **arguments) == first

    def test_a_clone_under_a_used_id_is_a_conflict(self, catalog):
        make(catalog, name='debian')
        make(catalog, 'other')
        arguments = {'kind': api.Kind.IMAGE, 'project_id': 'p1'}
        with pytest.raises(exceptions.Conflict):
            catalog.clone('image', None, blob_id='other', **arguments)
        with pytest.raises(exceptions.Conflict, match='debian'):
            catalog.clone(
                'image', None, blob_id='third', name='debian', **arguments
            )
        with pytest.raises(exceptions.NotFound):
            catalog.clone('image', 9, blob_id='third', **arguments)

    # Writers

    def test_a_publish_is_the_new_head(self, catalog):
        make(catalog)
        version = publish(catalog, attach(catalog))
        assert (version.number, version.root) == (2, ROOT_2)
        assert catalog.version('disk') == version
        assert [v.number for v in catalog.versions('disk')] == [1, 2]

    def test_a_stale_epoch_cannot_publish(self, catalog, open_catalog):
        make(catalog)
        old = attach(catalog)
        new = open_catalog().claim('disk', 'another secret')
        assert new > old
        with pytest.raises(exceptions.StaleWriter, match=str(new)):
            publish(catalog, old)
        with pytest.raises(exceptions.LazyBlobError):
            publish(catalog, new)  # with the old secret
        version = publish(catalog, new, secret='another secret')
        assert version.number == 2

    def test_a_head_that_moved_on_cannot_be_overwritten(self, catalog):
        make(catalog)
        epoch = attach(catalog)
        publish(catalog, epoch)
        with pytest.raises(exceptions.StaleWriter, match='2'):
            publish(catalog, epoch, commit_id='c2', root=ROOT)
        assert catalog.version('disk').root == ROOT_2

    def test_a_repeated_publish_answers_the_first(self, catalog):
        make(catalog)
        epoch = attach(catalog)
        image = api.NewImage('snapshot', 'p1')
        first = publish(catalog, epoch, image=image, drop_parent=True)
        again = publish(catalog, epoch, image=image, drop_parent=True)
        assert again == first
        # Even when its writer was replaced in between: it did land.
        catalog.claim('disk', 'secret')
        assert publish(catalog, epoch, image=image) == first
        assert catalog.find_commit('disk', 'c1') == first
        assert catalog.find_commit('disk', 'c2') is None
        assert len(catalog.versions('snapshot')) == 1

    def test_the_wrong_secret_cannot_write_mint_or_release(self, catalog):
        make(catalog)
        epoch = attach(catalog)
        for secret in ('', 'guess'):
            for act in (
                lambda s: publish(catalog, epoch, secret=s),
                lambda s: catalog.mint_location('disk', 1, s),
                lambda s: catalog.delete('disk', secret=s),
            ):
                with pytest.raises(exceptions.Forbidden):
                    act(secret)
        catalog.mint_location('disk', 1, 'secret')
        catalog.delete('disk', secret='secret')

    def test_a_publish_needs_its_session(self, catalog):
        make(catalog)
        epoch = attach(catalog)
        with pytest.raises(exceptions.Conflict, match='session'):
            publish(catalog, epoch, session_id='never begun')
        catalog.end_session('writer')
        with pytest.raises(exceptions.Conflict, match='session'):
            publish(catalog, epoch)
        catalog.end_session('writer')
        catalog.begin_session('test', 'writer')  # repeated: still ended
        with pytest.raises(exceptions.Conflict, match='session'):
            publish(catalog, epoch)
        assert catalog.version('disk').number == 1

    def test_a_publish_ends_its_session_if_asked(self, catalog):
        make(catalog)
        catalog.end_session('session of image')
        epoch = attach(catalog)
        publish(catalog, epoch)
        assert [found.id for found in catalog.sessions()] == ['writer']
        version = publish(
            catalog, epoch, parent=2, commit_id='c2', ends_session=True
        )
        assert version.number == 3
        assert catalog.sessions() == []
        with pytest.raises(exceptions.Conflict, match='session'):
            publish(catalog, epoch, parent=3, commit_id='c3')

    def test_a_publish_that_is_refused_ends_no_session(self, catalog):
        make(catalog)
        catalog.end_session('session of image')
        epoch = attach(catalog)
        with pytest.raises(exceptions.StaleWriter):
            publish(catalog, epoch, parent=7, ends_session=True)
        assert [found.id for found in catalog.sessions()] == ['writer']

    def test_a_publish_that_is_repeated_ends_its_session_too(self, catalog):
        """By the same writer, or by one that took the work over."""
        make(catalog)
        catalog.end_session('session of image')
        epoch = attach(catalog)
        first = publish(catalog, epoch, ends_session=True)
        assert publish(catalog, epoch, ends_session=True) == first
        catalog.begin_session('test', 'another')
        again = publish(
            catalog, epoch, session_id='another', ends_session=True
        )
        assert again == first
        assert catalog.sessions() == []

    def test_a_session_that_nobody_ended_is_seen(self, catalog):
        catalog.begin_session('host:17', 'lost')
        catalog.begin_session('host:18', 'done')
        catalog.end_session('done')
        (found,) = catalog.sessions()
        assert (found.id, found.owner) == ('lost', 'host:17')
        assert found.started_at.endswith('Z')

    def test_of_many_racing_publishes_one_wins(self, catalog, open_catalog):
        make(catalog)
        epoch = attach(catalog)
        barrier = threading.Barrier(6)
        outcomes = []

        def race(number):
            mine = open_catalog()
            barrier.wait()
            try:
                version = publish(mine, epoch, commit_id=f'c{number}')
            except exceptions.StaleWriter:
                outcomes.append('stale')
            except Exception as exc:
                outcomes.append(repr(exc))
            else:
                outcomes.append(version.commit_id)
            mine.close()

        threads = [threading.Thread(target=race, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert outcomes.count('stale') == 5
        winner = next(o for o in outcomes if o != 'stale')
        assert catalog.version('disk').commit_id == winner
        assert len(catalog.versions('disk')) == 2

    # Snapshots

    def test_a_snapshot_is_an_image_of_its_own(self, catalog):
        make(catalog)
        image = api.NewImage('snapshot', 'p9', 'my snapshot')
        version = publish(catalog, attach(catalog), image=image)
        blob = catalog.get('snapshot')
        assert blob.state is api.State.PROVISIONAL
        assert (blob.project_id, blob.name) == ('p9', 'my snapshot')
        assert blob.kind is api.Kind.IMAGE
        assert blob.chunk_size_bytes == CHUNK_BYTES
        copy = catalog.version('snapshot')
        assert (copy.number, copy.root) == (1, version.root)
        catalog.activate('snapshot')
        catalog.activate('snapshot')
        assert catalog.get('snapshot').state is api.State.ACTIVE
        catalog.delete('disk', secret='secret')
        assert catalog.version('snapshot') == copy

    def test_a_used_image_id_undoes_the_whole_publish(self, catalog):
        make(catalog)
        epoch = attach(catalog)
        image = api.NewImage('image', 'p1')
        with pytest.raises(exceptions.Conflict, match='image'):
            publish(catalog, epoch, image=image, drop_parent=True)
        assert [v.number for v in catalog.versions('disk')] == [1]
        assert catalog.get('disk').head == 1
        assert publish(catalog, epoch).number == 2

    def test_a_publish_drops_its_parent_unless_it_is_read(self, catalog):
        make(catalog)
        epoch = attach(catalog)
        publish(catalog, epoch, drop_parent=True)
        # Version 1 is what the mirror was attached to.
        assert [v.number for v in catalog.versions('disk')] == [1, 2]
        publish(catalog, epoch, 2, 'c2', drop_parent=True)
        assert [v.number for v in catalog.versions('disk')] == [1, 3]
        # Its agent restarts: it still reads version 1.
        epoch = catalog.claim('disk', 'secret')
        publish(catalog, epoch, 3, 'c3', drop_parent=True)
        assert [v.number for v in catalog.versions('disk')] == [1, 4]
        # A new attachment reads version 4.
        epoch = catalog.claim('disk', 'new')
        publish(catalog, epoch, 4, 'c4', drop_parent=True, secret='new')
        assert 4 in [v.number for v in catalog.versions('disk')]

    # Deleting

    def test_a_deleted_image_refuses_a_late_snapshot(self, catalog):
        make(catalog, name='debian')
        epoch = attach(catalog)
        catalog.delete('image')
        with pytest.raises(exceptions.NotFound):
            catalog.get('image')
        assert 'image' not in [b.id for b in catalog.list_blobs()]
        with pytest.raises(exceptions.NotFound):
            catalog.delete('image')
        with pytest.raises(exceptions.Conflict):
            publish(catalog, epoch, image=api.NewImage('image', 'p1'))
        with pytest.raises(exceptions.Conflict, match='deleted'):
            catalog.clone(
                'disk',
                None,
                blob_id='image',
                kind=api.Kind.IMAGE,
                project_id='p1',
            )
        make(catalog, 'other', name='debian')  # its name is free

    def test_an_image_that_is_stored_again_has_new_versions(self, catalog):
        """Glance repeats an import under the same id."""
        make(catalog, name='debian')
        old = catalog.mint_location('image', 1)
        catalog.delete('image')
        version = make(catalog, root=ROOT_2, project_id='p2')
        assert (version.number, version.root) == (2, ROOT_2)
        assert catalog.version('image') == version
        assert catalog.get('image').project_id == 'p2'
        assert catalog.get('image').name == ''
        with pytest.raises(exceptions.NotFound):
            catalog.check_location(old)

    def test_only_the_owning_project_deletes(self, catalog):
        make(catalog)
        with pytest.raises(exceptions.Forbidden):
            catalog.delete('image', project_id='p2')
        catalog.delete('image', project_id='p1')

    def test_a_deleted_disk_is_gone(self, catalog):
        make(catalog)
        attach(catalog)
        catalog.delete('disk', secret='secret')
        with pytest.raises(exceptions.NotFound):
            catalog.get('disk')
        attach(catalog)

    def test_old_versions_are_deleted_one_by_one(self, catalog):
        make(catalog)
        epoch = attach(catalog)
        publish(catalog, epoch)
        publish(catalog, epoch, 2, 'c2')
        for number in (1, 3):  # what the mirror reads, and the head
            with pytest.raises(exceptions.Conflict):
                catalog.delete_version('disk', number)
        catalog.delete_version('disk', 2)
        assert [v.number for v in catalog.versions('disk')] == [1, 3]
        with pytest.raises(exceptions.NotFound):
            catalog.delete_version('disk', 2)

    # Bad digests

    def test_what_is_bad_is_listed_until_it_is_forgotten(
        self, catalog, open_catalog
    ):
        digests = [f'{number:064x}' for number in range(5)]
        catalog.report_bad(digests[1:3], 'host-1')
        other = open_catalog()
        other.report_bad([digests[4], digests[2], digests[4]], 'host-2')
        found = catalog.bad_digests()
        assert [(row.digest, row.reporter) for row in found] == [
            (digests[1], 'host-1'),
            (digests[2], 'host-1'),
            (digests[4], 'host-2'),
        ]
        assert found[0].reported_at.endswith('Z')
        assert other.bad_digests(limit=1) == found[:1]
        assert other.bad_digests(after=digests[1], limit=1) == found[1:2]
        assert other.bad_digests(digests[:2]) == found[:1]
        assert other.bad_digests([]) == []
        for _ in range(2):
            other.forget_bad([digests[0], digests[2], digests[1]])
            assert catalog.bad_digests() == found[2:]
        catalog.report_bad([], 'host')
        catalog.forget_bad([])

    def test_two_that_report_the_same_are_both_content(self, open_catalog):
        digests = [f'{number:064x}' for number in range(1200)]
        catalogs = [open_catalog() for _ in range(3)]
        failed = []

        def report(catalog):
            try:
                catalog.report_bad(digests, 'x' * 300)
            except Exception as exc:
                failed.append(exc)

        threads = [
            threading.Thread(target=report, args=(catalog,))
            for catalog in catalogs
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert failed == []
        catalog = catalogs[0]
        found = catalog.bad_digests(limit=2000)
        assert [row.digest for row in found] == digests
        catalog.forget_bad(digests)
        assert catalog.bad_digests() == []

    def test_a_session_begins_with_what_is_listed(self, catalog):
        assert catalog.begin_session('owner', 's1') == []
        digests = [f'{number:064x}' for number in range(1001)]
        catalog.report_bad(digests[:2], 'host')
        for _ in range(2):  # Repeated as well.
            assert catalog.begin_session('owner', 's2') == digests[:2]
        catalog.report_bad(digests, 'host')
        assert catalog.begin_session('owner', 's3') == digests[:1000]

    # Locations

    def test_a_minted_location_names_its_version(self, catalog, open_catalog):
        version = make(catalog)
        url = catalog.mint_location('image', 1)
        uuid = catalog.repository().uuid
        assert url.startswith(f'blob://{uuid}/image/1?mac=')
        assert open_catalog().check_location(url) == version

    def test_a_location_that_it_did_not_mint_is_refused(self, catalog):
        make(catalog)
        make(catalog, 'other')
        url = catalog.mint_location('image', 1)
        uuid = catalog.repository().uuid
        for forged in (
            url.replace('/image/', '/other/'),
            url.replace('/1?', '/2?'),
            url.replace(uuid, '0' * 8 + uuid[8:]),
            url[:-1] + ('0' if url[-1] != '0' else '1'),
            url[:-1],
            url + '\n',
            url + '&x=1',
            url.partition('?')[0],
            'file:///etc/passwd',
            '',
        ):
            with pytest.raises(exceptions.BadLocation):
                catalog.check_location(forged)

    def test_the_location_of_a_deleted_image_is_not_found(self, catalog):
        make(catalog)
        url = catalog.mint_location('image', 1)
        catalog.delete('image')
        with pytest.raises(exceptions.NotFound):
            catalog.check_location(url)
