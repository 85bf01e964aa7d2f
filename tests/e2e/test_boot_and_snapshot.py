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
"""Image to server to snapshot to server, told in the order of a day."""

import pathlib

import parts
import pytest
from cloud.api import ApiError
from cloud.tenant import openstack
from cloud.tenant import until


class Story:
    """What the tests of this module hand on."""


@pytest.fixture(scope='module')
def fresh_host(cloud, base):
    """No chunk of any image is on the host."""
    assert not parts.mirrors(), 'servers are left from an earlier run'
    cloud['lazyimage-agent'].stop()
    for path in (parts.STATE / 'cache').iterdir():
        path.unlink()
    cloud['lazyimage-agent'].start()
    cloud['lazyimage-agent'].wait_ready()


@pytest.fixture(scope='module')
def story(demo, fresh_host, guest_image):
    """A server from an image of its own, its reads traced from the start."""
    story = Story()
    story.image = demo.upload(guest_image, 'first-image')
    server = demo.boot('first', story.image['id'])
    trace = parts.ReadTrace(server)
    story.first = parts.Guest(demo, server)
    story.first.trace = trace
    return story


def test_a_server_boots_from_an_image_that_was_not_copied(story):
    server = story.first.ready()
    assert server['status'] == 'ACTIVE'
    assert len(story.first.marks) == 1
    assert not (parts.INSTANCES / story.first.id / 'disk').exists()


def traced(guest):
    """All that it read."""

    def complete():
        reads = guest.trace.reads()
        return reads if reads.traced_bytes == reads.counted_bytes else None

    return until(complete, 10, 'the trace to hold all that QEMU counted')


def test_no_chunk_is_fetched_that_the_guest_did_not_read(story, guest_image):
    reads = traced(story.first)
    fetched = parts.mirror(story.first.id)['fetched_bytes']
    data = parts.data_chunks(guest_image)
    touched = len(reads.chunks & data) * parts.CHUNK_BYTES
    assert 0 < fetched <= touched
    assert fetched < len(data) * parts.CHUNK_BYTES / 2
    story.first.chunks = reads.chunks & data


@pytest.fixture(scope='module')
def twin(demo, story):
    """Another server of the image, on the host that has its chunks."""
    server = demo.boot('twin', story.image['id'])
    trace = parts.ReadTrace(server)
    twin = parts.Guest(demo, server)
    twin.trace = trace
    return twin


def test_a_running_server_becomes_a_raw_image_of_its_disks_size(
    demo, story, twin
):
    story.snapshot = demo.snapshot(story.first.id, 'first-snapshot')
    image = demo.wait_image(story.snapshot)
    assert image['disk_format'] == 'raw'
    assert image['size'] == 1 << 30
    assert image['stores'] == 'blob1'
    demo.wait_server(story.first.id)


def test_a_snapshot_goes_through_the_chunks_with_changes_only(story):
    commit = parts.last_commit(story.first.id)
    found = parts.mirror(story.first.id)
    # The guest wrote its marks and what a file system writes beside them.
    blocks = found['local_bytes'] // 4096
    assert 0 < commit['committed_bytes'] <= blocks * parts.CHUNK_BYTES
    assert commit['committed_bytes'] < (1 << 30) / 50
    assert commit['statistics']['written_bytes'] < (1 << 30) / 200


def test_a_second_snapshot_right_after_finds_next_to_nothing(demo, story):
    image = demo.snapshot(story.first.id, 'first-snapshot')
    assert demo.wait_image(image)['size'] == 1 << 30
    demo.wait_server(story.first.id)
    assert parts.last_commit(story.first.id)['image_id'] == image
    story.second_snapshot = image


def test_a_server_from_the_snapshot_carries_the_first_ones_marks(demo, story):
    server = demo.boot('second', story.snapshot)
    story.second = parts.Guest(demo, server)
    story.second.marks = story.first.marks
    story.second.came_back()
    assert len(story.second.marks) == 2


def test_servers_of_one_image_do_not_see_each_others_writes(story, twin):
    twin.ready()
    assert len(twin.marks) == 1
    assert not set(twin.marks) & set(story.second.marks)


def test_what_one_server_read_is_not_fetched_for_the_next(
    demo, story, twin, guest_image
):
    reads = traced(twin)
    data = parts.data_chunks(guest_image)
    fetched = parts.mirror(twin.id)['fetched_bytes']
    new = reads.chunks & data - story.first.chunks
    assert fetched <= len(new) * parts.CHUNK_BYTES
    assert fetched < len(story.first.chunks) * parts.CHUNK_BYTES / 10
    demo.delete_server(twin.id)


def test_a_snapshot_of_a_snapshots_server_carries_both_generations(
    demo, story
):
    image = demo.snapshot(story.second.id, 'second-generation')
    demo.wait_image(image)
    demo.wait_server(story.second.id)
    third = parts.Guest(demo, demo.boot('third', image))
    third.marks = story.second.marks
    third.came_back()
    assert len(third.marks) == 3
    demo.delete_server(third.id)
    demo.delete_image(image)


def test_deleting_their_images_changes_nothing_for_servers(demo, story):
    demo.delete_image(story.image['id'])
    demo.delete_image(story.snapshot)
    demo.delete_image(story.second_snapshot)
    with pytest.raises(ApiError):
        demo.image(story.image['id'])
    assert story.snapshot not in parts.blobs()
    story.second.act('reboot', type='HARD')
    story.second.came_back()


def test_a_stopped_server_whose_image_is_gone_becomes_an_image(demo, story):
    story.first.act('os-stop', 'SHUTOFF')
    story.stopped = demo.snapshot(story.first.id, 'stopped-snapshot')
    assert demo.wait_image(story.stopped)['size'] == 1 << 30
    demo.wait_server(story.first.id, 'SHUTOFF')


def test_a_downloaded_snapshot_is_the_disk_byte_for_byte(story):
    path = pathlib.Path('/var/tmp/downloaded.raw')
    try:
        openstack('image', 'save', '--file', str(path), story.stopped)
        assert path.stat().st_size == 1 << 30
        assert parts.digest(path) == story.first.disk_digest()
    finally:
        path.unlink(missing_ok=True)


def test_the_server_starts_again_from_its_disk(story):
    story.first.tenant.action(story.first.id, 'os-start')
    story.first.came_back()


def test_servers_and_images_are_deleted(demo, story):
    blob = parts.mirror(story.first.id)['blob_id']
    demo.delete_server(story.first.id)
    demo.delete_server(story.second.id)
    demo.delete_image(story.stopped)
    assert not parts.mirrors() & {
        (story.first.id, 'disk'),
        (story.second.id, 'disk'),
    }
    until(lambda: blob not in parts.blobs(), 30, 'the disk\'s blob to go')
