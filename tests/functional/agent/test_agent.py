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
"""What nova-compute relies on: attach, commit, release, restart."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid

import pytest

from nova_lazyimage.agent import client
from tests.functional.agent.files import read
from tests.functional.waits import wait_for

MIB = 1024 * 1024
CHUNK_BYTES = 256 * 1024
SIZE_BYTES = 4 * MIB + 4096 + 512


def write(path, offset, data, sync=True):
    with open(path, 'r+b', buffering=0) as file:
        file.seek(offset)
        assert file.write(data) == len(data)
        if sync:
            os.fsync(file.fileno())


class TestAttach:
    def test_a_disk_reads_as_its_image_and_grows_by_zeros(
        self, site, noise, key
    ):
        data = noise(SIZE_BYTES)
        image = site.image(data)
        mirror = site.start().attach(
            *key, clone_blob=image, size_bytes=8 * MIB
        )
        assert mirror['base_size_bytes'] == SIZE_BYTES
        assert os.stat(mirror['path']).st_size == 8 * MIB
        assert read(mirror['path']) == data.ljust(8 * MIB, b'\0')

    def test_attaching_copies_nothing_and_reading_fetches_what_is_read(
        self, site, noise, key
    ):
        image = site.image(noise(SIZE_BYTES))
        agent = site.start()
        path = agent.attach(*key, clone_blob=image)['path']
        fetched = 'fetched_object_bytes_total'
        assert agent.status()['engine'][fetched] == 0
        with open(path, 'rb', buffering=0) as file:
            file.seek(CHUNK_BYTES + 5)
            file.read(1)
        assert 0 < agent.status()['engine'][fetched] <= 2 * CHUNK_BYTES

    def test_repeating_an_attach_answers_the_same_mirror(
        self, site, noise, key
    ):
        image = site.image(noise(MIB))
        agent = site.start()
        first = agent.attach(*key, clone_blob=image)
        assert agent.attach(*key, clone_blob=image) == first
        assert len(site.blobs()) == 2

    def test_another_image_is_refused_where_one_is_attached(
        self, site, noise, key
    ):
        first, second = site.image(noise(MIB)), site.image(noise(MIB, 2))
        agent = site.start()
        agent.attach(*key, clone_blob=first)
        with pytest.raises(client.Conflict, match='release it first'):
            agent.attach(*key, clone_blob=second)

    def test_an_unknown_image_leaves_nothing(self, site, key):
        agent = site.start()
        with pytest.raises(client.NotFound):
            agent.attach(*key, clone_blob='nobody')
        assert agent.mirrors() == []
        assert site.left() == []

    def test_a_clone_that_somebody_overwrote_at_once_is_refused(
        self, site, noise, key
    ):
        data = noise(MIB)
        good, evil = site.image(data), site.image(noise(MIB, 2))
        agent = site.start()
        root = site.repository.catalog.version(evil).root
        site.tell('clone-overtaken', root)
        with pytest.raises(client.Conflict, match=f'no copy of "{good}"'):
            agent.attach(*key, clone_blob=good)
        site.untell('clone-overtaken')
        mirror = agent.attach(*key, clone_blob=good)
        assert pathlib.Path(mirror['path']).read_bytes() == data

    def test_a_disk_never_shrinks(self, site, noise, key):
        image = site.image(noise(2 * MIB))
        agent = site.start()
        with pytest.raises(client.Conflict, match='shrink'):
            agent.attach(*key, clone_blob=image, size_bytes=MIB)
        agent.attach(*key, clone_blob=image)
        agent.grow(*key, 3 * MIB)
        with pytest.raises(client.Conflict, match='shrink'):
            agent.grow(*key, 2 * MIB)
        assert site.restart_killed().mirror(*key)['size_bytes'] == 3 * MIB

    def test_the_catalog_away_is_a_503_and_the_next_try_attaches(
        self, site, noise, key
    ):
        image = site.image(noise(MIB))
        agent = site.start()
        wait_for(lambda: agent.status()['repository'], 'the catalog')
        site.tell('catalog-away')
        with pytest.raises(client.RepositoryUnavailable):
            agent.attach(*key, clone_blob=image)
        site.untell('catalog-away')
        agent.attach(*key, clone_blob=image)

    def test_two_disks_never_write_to_one_blob(self, site, noise, key):
        image = site.image(noise(MIB))
        agent = site.start()
        agent.attach(*key, blob=image)
        with pytest.raises(client.Conflict, match='written by'):
            agent.attach(str(uuid.uuid4()), 'disk', blob=image)

    def test_the_head_is_what_the_guest_sees(self, site, noise, key):
        data = noise(2 * MIB)
        agent = site.start()
        path = agent.attach(*key, clone_blob=site.image(data))['path']
        write(path, 100, b'written')
        expected = bytearray(data[:65536])
        expected[100:107] = b'written'
        assert agent.head(*key, 65536) == expected

    def test_stat_does_not_wait_for_a_store_that_is_away(
        self, site, noise, key
    ):
        agent = site.start()
        image = site.image(noise(4 * MIB))
        path = agent.attach(*key, clone_blob=image)['path']
        site.tell('store-away')
        reader = subprocess.Popen(
            [sys.executable, '-c', f'open({path!r}, "rb").read()']
        )
        try:
            wait_for(lambda: agent.status()['store_away'], 'the alarm')
            started = time.monotonic()
            assert os.stat(path).st_size == 4 * MIB
            assert os.listdir(os.path.dirname(path)) == ['disk']
            assert time.monotonic() - started < 1
            assert reader.poll() is None
        finally:
            site.untell('store-away')
            reader.wait(30)
        assert reader.returncode == 0

    def test_a_read_waits_for_the_store_and_goes_on(self, site, noise, key):
        data = noise(2 * MIB)
        agent = site.start()
        path = agent.attach(*key, clone_blob=site.image(data))['path']
        site.tell('store-away')
        found = []
        thread = threading.Thread(target=lambda: found.append(read(path)))
        thread.start()
        wait_for(lambda: agent.status()['store_away'], 'the alarm')
        assert 'lazyimage_store_available 0.0' in agent.metrics()
        assert thread.is_alive()
        site.untell('store-away')
        thread.join(30)
        assert found == [data]
        assert not agent.status()['store_away']

    def test_end_misses_ends_what_waits_until_misses_are_allowed(
        self, site, noise, key
    ):
        data = noise(2 * MIB)
        agent = site.start()
        path = agent.attach(*key, clone_blob=site.image(data))['path']
        site.tell('store-away')
        reader = subprocess.Popen(
            [sys.executable, '-c', f'open({path!r}, "rb").read()'],
            stderr=subprocess.PIPE,
        )
        wait_for(lambda: agent.status()['store_away'], 'the alarm')
        agent.end_misses(*key)
        assert b'Input/output error' in reader.communicate(timeout=20)[1]
        site.untell('store-away')
        agent.allow_misses(*key)
        assert read(path) == data


class TestCommit:
    def test_the_image_of_a_snapshot_is_the_disk(self, site, noise, key):
        data = noise(SIZE_BYTES)
        agent = site.start()
        path = agent.attach(
            *key,
            clone_blob=site.image(data),
            project_id='tenant',
            size_bytes=6 * MIB,
        )['path']
        write(path, MIB, b'first' * 1000)
        write(path, 5 * MIB, b'beyond the image')
        image = str(uuid.uuid4())
        state = site.commit(key, image)
        assert state['location'].split('/')[3] == image
        found = site.repository.catalog.check_location(state['location'])
        assert (found.blob_id, found.project_id) == (image, 'tenant')
        assert site.read(image) == read(path)
        other = agent.attach(str(uuid.uuid4()), 'disk', clone_blob=image)
        assert read(other['path']) == read(path)

    def test_only_chunks_with_a_write_are_uploaded(self, site, noise, key):
        agent = site.start()
        image = site.image(noise(4 * MIB))
        path = agent.attach(*key, clone_blob=image)['path']
        write(path, CHUNK_BYTES + 17, b'x')
        write(path, 3 * CHUNK_BYTES + 17, b'x')
        state = site.commit(key)
        assert state['total_bytes'] == 2 * CHUNK_BYTES
        assert state['statistics']['stored_chunks'] == 2
        assert agent.mirror(*key)['dirty_bytes'] == 0
        assert site.commit(key)['total_bytes'] == 0

    def test_a_second_commit_uploads_only_what_changed_since_the_freeze(
        self, site, noise, key
    ):
        agent = site.start()
        image = site.image(noise(4 * MIB))
        path = agent.attach(*key, clone_blob=image)['path']
        for chunk in range(6):
            write(path, chunk * CHUNK_BYTES + 17, b'first')
        site.tell('store-slow', '0.1')
        commit_id = str(uuid.uuid4())
        agent.commit(*key, commit_id=commit_id)
        # While it is under way: of a chunk that it holds, and of another.
        write(path, 5 * CHUNK_BYTES, b'second')
        write(path, 9 * CHUNK_BYTES, b'second')
        state = agent.wait_for_commit(*key, commit_id, 30)
        assert state['total_bytes'] == 6 * CHUNK_BYTES
        site.untell('store-slow')
        agent = site.restart_killed()
        second = str(uuid.uuid4())
        state = site.commit(key, second)
        assert state['total_bytes'] == 2 * CHUNK_BYTES
        assert site.read(second) == read(path)

    def test_whoever_knows_the_end_of_a_commit_may_begin_the_next(
        self, site, noise, key
    ):
        agent = site.start()
        path = agent.attach(*key, clone_blob=site.image(noise(MIB)))['path']
        # Between the version that stands and the end of its job.
        site.tell('commit-slow-end', '0.2')
        for number in range(3):
            write(path, 0, b'%d' % number)
            commit_id = str(uuid.uuid4())
            image = str(uuid.uuid4()) if number == 1 else None
            agent.commit(*key, commit_id=commit_id, image_id=image)
            while True:
                state = agent.commit_state(*key, commit_id)['state']
                if state != 'sealed':
                    break
            assert state == 'published'

    def test_repeating_a_commit_answers_the_first(self, site, noise, key):
        agent = site.start()
        agent.attach(*key, clone_blob=site.image(noise(MIB)))
        commit_id = str(uuid.uuid4())
        agent.commit(*key, commit_id=commit_id)
        first = agent.wait_for_commit(*key, commit_id, 20)
        assert agent.commit(*key, commit_id=commit_id) == first
        assert agent.mirror(*key)['parent'] == 2

    def test_a_commit_is_the_disk_at_its_freeze_while_it_is_written(
        self, site, noise, key
    ):
        """Every block is overwritten while the store is slow."""
        data = noise(4 * MIB)
        agent = site.start()
        path = agent.attach(*key, clone_blob=site.image(data))['path']
        for offset in range(0, 4 * MIB, CHUNK_BYTES):
            write(path, offset + 4096, b'before' * 100, sync=False)
        before = read(path)
        site.tell('store-slow', '0.1')
        image, commit_id = str(uuid.uuid4()), str(uuid.uuid4())
        agent.commit(*key, commit_id=commit_id, image_id=image)
        for offset in range(0, 4 * MIB, 65536):
            write(path, offset + 4100, b'after!' * 100, sync=False)
        uploading = agent.commit_state(*key, commit_id)['state'] == 'sealed'
        assert uploading, 'the upload was over: this run proves nothing'
        agent.wait_for_commit(*key, commit_id, 60)
        assert site.read(image) == before
        site.untell('store-slow')
        second = str(uuid.uuid4())
        site.commit(key, second)
        assert site.read(second) == read(path)

    def test_a_commit_dies_with_the_agent_and_its_blocks_are_dirty_again(
        self, site, noise, key
    ):
        agent = site.start()
        path = agent.attach(*key, clone_blob=site.image(noise(2 * MIB)))[
            'path'
        ]
        write(path, 0, b'x' * MIB)
        dirty = agent.mirror(*key)['dirty_bytes']
        site.tell('store-away')
        commit_id = str(uuid.uuid4())
        agent.commit(*key, commit_id=commit_id)
        agent = site.restart_killed()
        state = agent.commit_state(*key, commit_id)
        assert state['state'] == 'failed'
        assert 'restarted' in state['error']['message']
        assert agent.mirror(*key)['dirty_bytes'] == dirty
        site.untell('store-away')
        image = str(uuid.uuid4())
        site.commit(key, image)
        assert site.read(image) == read(path)

    def test_a_publish_whose_answer_is_lost_is_found_and_not_repeated(
        self, site, noise, key
    ):
        agent = site.start()
        path = agent.attach(*key, clone_blob=site.image(noise(MIB)))['path']
        write(path, 0, b'written')
        site.tell('catalog-mute')
        image, commit_id = str(uuid.uuid4()), str(uuid.uuid4())
        agent.commit(*key, commit_id=commit_id, image_id=image)
        wait_for(lambda: image in site.blobs(), 'the publish')
        assert agent.commit_state(*key, commit_id)['state'] == 'sealed'
        site.untell('catalog-mute')
        state = agent.wait_for_commit(*key, commit_id, 30)
        assert (state['version'], state['error']) == (2, None)
        assert site.read(image) == read(path)
        assert site.commit(key)['version'] == 3

    def test_a_restart_finds_out_whether_the_publish_landed(
        self, site, noise, key
    ):
        agent = site.start()
        path = agent.attach(*key, clone_blob=site.image(noise(MIB)))['path']
        write(path, 0, b'written')
        site.tell('catalog-mute')
        image, commit_id = str(uuid.uuid4()), str(uuid.uuid4())
        agent.commit(*key, commit_id=commit_id, image_id=image)
        wait_for(lambda: image in site.blobs(), 'the publish')
        site.kill()
        site.untell('catalog-mute')
        agent = site.start()
        state = agent.wait_for_commit(*key, commit_id, 30)
        assert state['version'] == 2
        assert state['location'].split('/')[3] == image
        second = str(uuid.uuid4())
        site.commit(key, second)
        assert site.read(second) == read(path) == site.read(image)

    def test_a_second_commit_waits_its_turn(self, site, noise, key):
        agent = site.start()
        path = agent.attach(*key, clone_blob=site.image(noise(MIB)))['path']
        write(path, 0, b'written')
        site.tell('store-slow', '1')
        first = str(uuid.uuid4())
        agent.commit(*key, commit_id=first)
        with pytest.raises(client.Conflict, match='under way'):
            agent.commit(*key, commit_id=str(uuid.uuid4()))
        agent.wait_for_commit(*key, first, 30)

    def test_a_stale_writer_cannot_publish(self, site, noise, key):
        agent = site.start()
        mirror = agent.attach(*key, clone_blob=site.image(noise(MIB)))
        write(mirror['path'], 0, b'written')
        site.repository.catalog.claim(mirror['blob_id'], 'a successor')
        with pytest.raises(client.CommitFailed) as caught:
            site.commit(key)
        assert caught.value.code == 'StaleWriter'
        assert agent.mirror(*key)['dirty_bytes'] > 0

    def test_the_image_of_a_failed_snapshot_is_dropped(self, site, noise, key):
        agent = site.start()
        source = site.image(noise(MIB))
        agent.attach(*key, clone_blob=source)
        image = str(uuid.uuid4())
        site.commit(key, image)
        agent.drop_image(image)
        agent.drop_image(image)
        assert image not in site.blobs()
        with pytest.raises(client.Forbidden):
            agent.drop_image(source)
        read_by_glance = str(uuid.uuid4())
        site.commit(key, read_by_glance)
        site.repository.catalog.activate(read_by_glance)
        with pytest.raises(client.Conflict, match='in Glance'):
            agent.drop_image(read_by_glance)


class TestRestart:
    def test_every_acknowledged_write_is_there_after_kill_9(
        self, site, noise, key
    ):
        agent = site.start()
        path = agent.attach(*key, clone_blob=site.image(noise(2 * MIB)))[
            'path'
        ]
        with open(path, 'r+b', buffering=0) as file:
            os.pwrite(file.fileno(), b'acknowledged' * 50, 12345)
            os.pwrite(file.fileno(), b'flushed' * 50, 300000)
            os.fsync(file.fileno())
            os.pwrite(file.fileno(), b'late' * 50, 600000)
            before = os.pread(file.fileno(), 2 * MIB, 0)
        site.restart_killed()
        assert read(path) == before

    def test_owner_and_mode_that_libvirt_set_are_there_after_kill_9(
        self, site, noise, key
    ):
        agent = site.start()
        path = agent.attach(*key, clone_blob=site.image(noise(MIB)))['path']
        os.chown(path, 4242, 4343)
        os.chmod(path, 0o640)

        def is_journalled():
            found = (site.state / 'journal').glob('*.json')
            fields = json.loads(next(found).read_text())
            return (fields['uid'], fields['mode']) == (4242, 0o640)

        wait_for(is_journalled, 'the journal')
        site.restart_killed()
        status = os.stat(path)
        assert (status.st_uid, status.st_gid) == (4242, 4343)
        assert status.st_mode & 0o777 == 0o640

    def test_a_restart_asks_neither_catalog_nor_store(self, site, noise, key):
        data = noise(2 * MIB)
        agent = site.start()
        path = agent.attach(*key, clone_blob=site.image(data))['path']
        assert read(path) == data
        site.tell('catalog-away')
        site.tell('store-away')
        site.restart_killed()
        assert read(path) == data

    def test_a_stop_in_order_loses_nothing_and_unmounts(
        self, site, noise, key
    ):
        agent = site.start()
        path = agent.attach(*key, clone_blob=site.image(noise(MIB)))['path']
        write(path, 4097, b'not flushed', sync=False)
        before = read(path)
        assert site.stop() == 0
        assert not os.path.exists(path)
        site.start()
        assert read(path) == before

    def test_a_stop_does_not_wait_for_a_store_that_is_away(
        self, site, noise, key
    ):
        agent = site.start()
        path = agent.attach(*key, clone_blob=site.image(noise(MIB)))['path']
        site.tell('store-away')
        reader = subprocess.Popen(
            [sys.executable, '-c', f'open({path!r}, "rb").read()'],
            stderr=subprocess.DEVNULL,
        )
        wait_for(lambda: agent.status()['store_away'], 'the alarm')
        started = time.monotonic()
        assert site.stop() == 0
        assert time.monotonic() - started < 10
        assert reader.wait(10) != 0

    def test_a_second_agent_names_the_first(self, site):
        site.start()
        second = subprocess.run(
            site.agent.process.args,
            env=site.environment(),
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert second.returncode == 1
        assert f'pid {site.agent.process.pid}' in second.stderr
        assert site.client.status()['ready']

    def test_a_disk_whose_files_are_damaged_is_refused_and_others_serve(
        self, site, noise, key
    ):
        data = noise(MIB)
        image = site.image(data)
        agent = site.start()
        bad = agent.attach(*key, clone_blob=image)
        good = agent.attach(str(uuid.uuid4()), 'disk', clone_blob=image)
        site.kill()
        (site.state / 'mirrors' / bad['attach_id'] / 'delta').unlink()
        agent = site.start()
        assert agent.mirror(*key)['state'] == 'broken'
        with pytest.raises(client.Conflict, match='cannot be served'):
            agent.attach(*key, clone_blob=image)
        assert not os.path.exists(bad['path'])
        assert read(good['path']) == data
        agent.release(*key)
        assert len(agent.mirrors()) == 1


class TestRelease:
    def test_a_release_leaves_nothing(self, site, noise, key):
        image = site.image(noise(MIB))
        agent = site.start()
        path = agent.attach(*key, clone_blob=image)['path']
        write(path, 0, b'written')
        agent.attach(key[0], 'disk.rescue', clone_blob=image)
        agent.release_all(key[0])
        agent.release_all(key[0])
        assert agent.mirrors() == []
        assert site.blobs() == {image}
        assert site.left() == []
        assert not os.path.exists(os.path.dirname(path))

    def test_a_blob_may_be_kept(self, site, noise, key):
        agent = site.start()
        mirror = agent.attach(*key, clone_blob=site.image(noise(MIB)))
        write(mirror['path'], 0, b'written')
        expected = read(mirror['path'])
        site.commit(key)
        agent.release(*key, keep_blob=True)
        assert site.read(mirror['blob_id']) == expected
        site.repository.delete(mirror['blob_id'])

    def test_a_release_waits_for_no_catalog_and_the_blob_goes_later(
        self, site, noise, key
    ):
        image = site.image(noise(MIB))
        agent = site.start()
        agent.attach(*key, clone_blob=image)
        site.tell('catalog-away')
        agent.release(*key)
        assert agent.mirrors() == []
        assert list((site.state / 'mirrors').iterdir()) == []
        site.kill()
        site.untell('catalog-away')
        site.start()
        wait_for(lambda: site.blobs() == {image}, 'the blob to go')
        wait_for(lambda: site.left() == [], 'the record to go')

    def test_a_release_ends_the_commit_under_way(self, site, noise, key):
        image = site.image(noise(MIB))
        agent = site.start()
        path = agent.attach(*key, clone_blob=image)['path']
        write(path, 0, b'x' * MIB)
        site.tell('store-away')
        agent.commit(*key, commit_id=str(uuid.uuid4()))
        agent.release(*key)
        assert site.left() == []
        site.untell('store-away')
        assert site.blobs() == {image}

    def test_what_another_agent_has_claimed_stays(self, site, noise, key):
        agent = site.start()
        mirror = agent.attach(*key, clone_blob=site.image(noise(MIB)))
        site.repository.catalog.claim(mirror['blob_id'], 'a successor')
        agent.release(*key)
        assert mirror['blob_id'] in site.blobs()
        assert site.left() == []

    def test_a_tombstone_releases_a_server_deleted_while_we_were_away(
        self, site, noise, key
    ):
        image = site.image(noise(MIB))
        agent = site.start()
        agent.attach(*key, clone_blob=image)
        site.kill()
        tombstone = site.state / 'released' / key[0]
        tombstone.touch()
        assert site.start().mirrors() == []
        wait_for(lambda: site.blobs() == {image}, 'the blob to go')
        assert not tombstone.exists()

    def test_an_old_tombstone_does_not_take_a_new_disk_along(
        self, site, noise, key
    ):
        image = site.image(noise(MIB))
        agent = site.start()
        first = agent.attach(*key, clone_blob=image)
        (site.state / 'released' / key[0]).touch()
        second = agent.attach(*key, clone_blob=image)
        assert second['attach_id'] != first['attach_id']
        time.sleep(0.5)
        assert agent.mirror(*key)['attach_id'] == second['attach_id']

    def test_a_crash_in_the_midst_of_attach_is_undone(self, site, noise, key):
        """The clone is made; the agent dies before it is claimed."""
        image = site.image(noise(MIB))
        site.start()
        site.kill()
        attach_id = str(uuid.uuid4())
        record = {
            'format': 1,
            'attach_id': attach_id,
            'instance': key[0],
            'disk': key[1],
            'state': 'attaching',
            'blob_id': str(uuid.uuid4()),
            'secret': 'secret',
            'clone': image,
            'clone_version': 1,
            'base': None,
            'parent': None,
            'commit': None,
            'results': [],
        }
        from lazyblob.catalog import api

        site.repository.catalog.clone(
            image,
            1,
            blob_id=record['blob_id'],
            kind=api.Kind.DISK,
            project_id='project',
        )
        path = site.state / 'journal' / f'{attach_id}.json'
        path.write_text(json.dumps(record))
        site.start()
        wait_for(lambda: site.blobs() == {image}, 'the clone to go')
        wait_for(lambda: site.left() == [], 'the record to go')


class TestInterface:
    @pytest.mark.parametrize(
        ('verb', 'path', 'body'),
        [
            ('PUT', '/v1/mirrors/not-a-uuid/disk', {'blob': 'b'}),
            ('PUT', '/v1/mirrors/{uuid}/..', {'blob': 'b'}),
            ('PUT', '/v1/mirrors/{uuid}/a%2Fb', {'blob': 'b'}),
            ('PUT', '/v1/mirrors/{uuid}/disk', {}),
            ('PUT', '/v1/mirrors/{uuid}/disk', {'blob': '../b'}),
            ('PUT', '/v1/mirrors/{uuid}/disk', {'blob': 'b', 'clone': {}}),
            ('PUT', '/v1/mirrors/{uuid}/disk', {'blob': 'b', 'more': 1}),
            ('PUT', '/v1/mirrors/{uuid}/disk', {'blob': 'b', 'size_bytes': 0}),
            ('PUT', '/v1/mirrors/{uuid}/disk', {'clone': {'blob': 7}}),
            ('POST', '/v1/mirrors/{uuid}/disk/grow', {'size_bytes': '1'}),
            ('POST', '/v1/mirrors/{uuid}/disk/commits', {'commit_id': 'x'}),
            ('GET', '/v1/mirrors/{uuid}/disk/head?bytes=-1', None),
            ('DELETE', '/v1/mirrors/{uuid}/disk?keep_blob=yes', None),
            ('GET', '/v2/status', None),
            ('PUT', '/v1/status', {}),
        ],
    )
    def test_wrong_input_is_refused_before_anything_is_done(
        self, shared, verb, path, body
    ):
        path = path.replace('{uuid}', str(uuid.uuid4()))
        with pytest.raises(client.BadRequest):
            shared.client._json(verb, path, body)
        assert shared.client.mirrors() == []
        assert shared.left() == []

    @pytest.mark.parametrize(
        'request_bytes',
        [
            b'Content-Length: 9\r\n\r\nnot json!',
            b'Content-Length: 99999999\r\n\r\n',
            b'Content-Length: -1\r\n\r\n',
            b'Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n',
            b'Content-Length: 2\r\n\r\n[]',
        ],
    )
    def test_a_malformed_body_is_a_400(self, shared, request_bytes):
        with socket.socket(socket.AF_UNIX) as connection:
            with client.address_of(shared.client.socket_path) as address:
                connection.connect(address)
            connection.sendall(b'PUT /v1/mirrors/x/y HTTP/1.1\r\n')
            connection.sendall(request_bytes)
            connection.settimeout(10)
            assert connection.recv(64).startswith(b'HTTP/1.1 400 ')

    def test_a_stranger_is_turned_away(self, shared):
        """Even one whom the socket's mode would let in."""
        path = shared.client.socket_path
        os.chmod(path, 0o666)
        program = (
            'import os, sys\n'
            'from nova_lazyimage.agent import client\n'
            'os.setgroups([]); os.setgid(65534); os.setuid(65534)\n'
            'try:\n'
            f'    client.AgentClient({path!r}).status()\n'
            'except client.Forbidden:\n'
            '    sys.exit(42)\n'
        )
        if os.geteuid() != 0:
            pytest.skip('needs root, to be somebody else')
        for folder in pathlib.Path(path).parents:
            if not folder.stat().st_mode & 0o001:
                folder.chmod(folder.stat().st_mode | 0o001)
        done = subprocess.run(
            [sys.executable, '-c', program], env=shared.environment()
        )
        os.chmod(path, 0o600)
        assert done.returncode == 42

    def test_the_metrics_name_what_style_asks_for(self, shared):
        text = shared.client.metrics()
        for name in (
            'lazyimage_mirrors 0.0',
            'lazyimage_store_available 1.0',
            'lazyimage_cache_bytes ',
            'lazyimage_cache_hits_total ',
            'lazyimage_chunks_refused_total{source="store"} ',
            'lazyimage_fetch_seconds_bucket{',
            'lazyimage_fetch_bytes_total ',
            'lazyimage_commits_total{state="published"} ',
        ):
            assert name in text

    def test_a_signal_of_hangup_ends_it_in_order(self, site):
        site.start()
        site.agent.process.send_signal(signal.SIGHUP)
        assert site.agent.process.wait(20) == 0
