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
"""Wrong input at Glance's API: the answer, the image's state, what is left.

Everything is real but the clients: Glance's API in this process, its
database, the store, the repository.
"""

import os
import struct
import subprocess
import time
import types
import uuid

import glance_store
import oslo_messaging
import pytest
from oslo_config import cfg
from oslo_messaging import conffixture

from lazyblob import repository
from lazyblob.catalog import api as catalog_api
from nova_lazyimage.conductor import rpcapi
from nova_lazyimage.conductor import service

CHUNK = 512 * 1024
OWNER, OTHER = 'owner-project', 'other-project'
# The first one loads Glance's whole task engine.
TASK_SECONDS_MAX = 60.0
TASK_PAUSE_SECONDS = 1.0


@pytest.fixture
def place(new_repository):
    return new_repository()


@pytest.fixture
def glance(new_glance, place):
    """Glance with one store of type blob; locations may be set."""
    return new_glance(
        {'blob1': place.options},
        do_secure_hash=False,
        show_multiple_locations=True,
    )


def create(glance, project=OWNER, role='member', **properties):
    answer = glance.api_post(
        '/v2/images',
        headers=glance.headers(project, role),
        json={
            'name': 'image',
            'container_format': 'bare',
            'disk_format': 'raw',
        }
        | properties,
    )
    assert answer.status_code == 201, answer.text
    return answer.json['id']


def upload(glance, image_id, data, project=OWNER, size_bytes=None):
    headers = glance.headers(
        project, **{'Content-Type': 'application/octet-stream'}
    )
    if size_bytes is not None:
        headers['x-openstack-image-size'] = str(size_bytes)
    body = {'data': data} if isinstance(data, bytes) else {'body_file': data}
    return glance.api_put(
        f'/v2/images/{image_id}/file', headers=headers, **body
    ).status_code


def show(glance, image_id):
    return glance.api_get(
        f'/v2/images/{image_id}', headers=glance.headers(OWNER, 'admin')
    ).json


def status(glance, image_id):
    return show(glance, image_id)['status']


def download(glance, image_id, project=OWNER):
    return glance.api_get(
        f'/v2/images/{image_id}/file', headers=glance.headers(project)
    )


def delete(glance, image_id, project=OWNER, role='member'):
    return glance.api_delete(
        f'/v2/images/{image_id}', headers=glance.headers(project, role)
    ).status_code


def stored(glance, data=b'some bytes', project=OWNER, **properties):
    """An active image and its location."""
    image_id = create(glance, project, **properties)
    assert upload(glance, image_id, data, project) == 204
    return image_id, show(glance, image_id)['locations'][0]['url']


def patch_location(glance, image_id, url, project=OTHER):
    """What Nova 31 does, and any user where locations may be set."""
    return glance.api_patch(
        f'/v2/images/{image_id}',
        [
            {
                'op': 'add',
                'path': '/locations/-',
                'value': {'url': url, 'metadata': {}},
            }
        ],
        headers=glance.headers(project),
    ).status_code


def post_location(glance, image_id, url, project=OTHER):
    """What Nova does since 32. Its failures are silent; the status after."""
    answer = glance.api_post(
        f'/v2/images/{image_id}/locations',
        headers=glance.headers(project, 'member,service'),
        json={'url': url},
    )
    assert answer.status_code == 202, answer.text
    deadline = time.monotonic() + TASK_SECONDS_MAX
    while time.monotonic() < deadline:
        # Not at once: Glance's database is SQLite here, and a task that finds
        # it locked ends without a word.
        time.sleep(TASK_PAUSE_SECONDS)
        tasks = glance.api_get(
            f'/v2/images/{image_id}/tasks',
            headers=glance.headers(project, 'admin'),
        ).json['tasks']
        if tasks and all(t['status'] in ('success', 'failure') for t in tasks):
            break
    return status(glance, image_id)


@pytest.fixture
def snapshot(place):
    """``snapshot(image id)``: a blob as a snapshot leaves it; its location."""
    images = place.repository
    catalog = images.catalog

    def make(image_id, data=b'x' * 5000, project=OTHER):
        images.create([data], blob_id='base', project_id=project)
        version = catalog.clone(
            'base',
            None,
            blob_id='disk',
            kind=catalog_api.Kind.DISK,
            project_id=project,
        )
        catalog.begin_session('agent', 'session')
        catalog.publish(
            'disk',
            epoch=catalog.claim('disk', 'secret'),
            parent=1,
            commit_id='commit',
            root=version.root,
            size_bytes=len(data),
            session_id='session',
            secret='secret',
            image=catalog_api.NewImage(image_id, project),
        )
        catalog.end_session('session')
        return catalog.mint_location(image_id, 1)

    return make


@pytest.mark.parametrize('add_location', [patch_location, post_location])
def test_a_snapshots_location_makes_its_image_active(
    glance, place, snapshot, add_location
):
    image_id = create(glance, OTHER)
    url = snapshot(image_id)
    assert add_location(glance, image_id, url) in (200, 'active')
    image = show(glance, image_id)
    assert image['status'] == 'active'
    assert image['size'] == 5000
    assert image['stores'] == 'blob1'
    assert place.repository.catalog.get(image_id).state is (
        catalog_api.State.ACTIVE
    )
    assert download(glance, image_id, OTHER).body == b'x' * 5000
    assert delete(glance, image_id, OTHER) == 204
    assert place.rows()['blobs'] == ['base', 'disk']


def forged(url):
    return url[:-1] + ('0' if url[-1] != '0' else '1')


def foreign(url):
    return f'blob://{uuid.uuid4()}/{url.split("/", 3)[3]}'


def unknown(url):
    return url.replace('/1?mac', '/7?mac')


def malformed(url):
    return url.partition('?')[0]


@pytest.mark.expect_logs('')
@pytest.mark.parametrize('change', [forged, foreign, unknown, malformed])
@pytest.mark.parametrize('add_location', [patch_location, post_location])
def test_a_location_that_was_not_minted_here_is_never_kept(
    glance, place, change, add_location
):
    target, url = stored(glance)
    image_id = create(glance, OTHER)
    before = place.rows()
    assert add_location(glance, image_id, change(url)) in (400, 'queued')
    image = show(glance, image_id)
    assert image['status'] == 'queued'
    assert image['locations'] == []
    assert delete(glance, image_id, OTHER) == 204
    assert place.rows() == before
    assert download(glance, target).body == b'some bytes'


@pytest.mark.parametrize('add_location', [patch_location, post_location])
def test_the_location_of_a_deleted_image_cannot_be_replayed(
    glance, place, add_location
):
    old, url = stored(glance)
    assert delete(glance, old) == 204
    image_id = create(glance, OTHER)
    assert add_location(glance, image_id, url) in (400, 'queued')
    assert status(glance, image_id) == 'queued'
    assert show(glance, image_id)['locations'] == []
    assert place.is_empty()


def test_who_copies_a_public_images_location_cannot_delete_its_bytes(
    glance, place
):
    public, url = stored(glance)
    thief = create(glance, OTHER)
    assert patch_location(glance, thief, url) == 200
    assert delete(glance, thief, OTHER) == 403
    assert status(glance, thief) == 'active'
    assert download(glance, public).body == b'some bytes'
    assert place.rows()['versions'] == [(public, 1)]


def test_the_owner_deletes_an_image_and_its_bytes(glance, place):
    image_id, _ = stored(glance)
    assert delete(glance, image_id) == 204
    assert place.is_empty()


def test_an_administrator_deletes_anybodys_image(glance, place):
    image_id, _ = stored(glance)
    assert delete(glance, image_id, 'admins', 'admin') == 204
    assert place.is_empty()


class Broken:
    """A client that goes away in the middle."""

    def __init__(self, data):
        self.parts = [data]

    def read(self, size=-1):
        if self.parts:
            return self.parts.pop()
        raise OSError('the client is gone')


def test_a_truncated_upload_leaves_nothing_and_may_be_repeated(glance, place):
    image_id = create(glance)
    assert upload(glance, image_id, Broken(os.urandom(3 * CHUNK))) == 500
    assert status(glance, image_id) == 'queued'
    assert place.is_empty()
    assert upload(glance, image_id, b'whole') == 204
    assert download(glance, image_id).body == b'whole'


@pytest.mark.parametrize('said_bytes', [1, CHUNK, 3 * CHUNK])
def test_an_image_size_that_lies_is_a_bad_request_and_leaves_nothing(
    glance, place, said_bytes
):
    image_id = create(glance)
    data = os.urandom(2 * CHUNK)
    answer = upload(glance, image_id, data, size_bytes=said_bytes)
    assert answer == 400
    assert status(glance, image_id) == 'queued'
    assert place.is_empty()
    assert upload(glance, image_id, data, size_bytes=len(data)) == 204


QCOW2 = struct.pack(
    '>4sIQIIQIIQQIIQ', b'QFI\xfb', 2, 0, 0, 16, 1 << 20, 0, 1, 0, 0, 0, 0, 0
).ljust(64 * 1024, b'\0')


def test_an_image_that_glance_rejects_afterwards_is_freed_by_its_deletion(
    glance, place
):
    image_id = create(glance, disk_format='qcow2')
    assert upload(glance, image_id, b'\x01raw' * 10_000) == 415
    # Glance keeps location and bytes, so they are not ours to overwrite.
    assert status(glance, image_id) == 'queued'
    assert place.rows()['blobs'] == [image_id]
    assert upload(glance, image_id, QCOW2) == 500  # Glance knows no Duplicate
    assert place.rows()['blobs'] == [image_id]
    assert delete(glance, image_id) == 204
    assert place.is_empty()


def test_a_qcow2_that_is_claimed_raw_is_kept_byte_for_byte(glance, place):
    # Glance only warns; whoever boots it inspects it (Nova's door does).
    image_id, _ = stored(glance, QCOW2)
    assert status(glance, image_id) == 'active'
    assert download(glance, image_id).body == QCOW2
    assert delete(glance, image_id) == 204
    assert place.is_empty()


@pytest.fixture
def small_disk(tmp_path):
    """A chunk store on a file system of 4 MiB."""
    folder = tmp_path / 'small'
    folder.mkdir()
    mounted = subprocess.run(
        ['mount', '-t', 'tmpfs', '-o', 'size=4m', 'lazyimage-test', folder],
        capture_output=True,
        text=True,
    )
    if mounted.returncode:
        pytest.skip(f'mounting needs root: {mounted.stderr.strip()}')
    options = {
        'blob_store_chunk_store': f'file://{folder}/chunks',
        'blob_store_catalog': f'sqlite:///{tmp_path}/catalog.sqlite',
    }
    repository.initialise(*options.values())
    yield types.SimpleNamespace(options=options, folder=folder)
    subprocess.run(['umount', '--lazy', folder], check=True)


def test_a_disk_that_gets_full_is_told_and_leaves_no_image(
    new_glance, small_disk
):
    glance = new_glance({'blob1': small_disk.options})
    image_id = create(glance)
    assert upload(glance, image_id, os.urandom(16 * CHUNK)) == 413
    assert status(glance, image_id) == 'queued'
    images = repository.connect(*small_disk.options.values())
    assert images.catalog.list_blobs() == []
    # With room again (the collector's work) the same image may be uploaded.
    for digest, _ in list(images.store.list()):
        images.store.delete(digest)
    assert upload(glance, image_id, os.urandom(2 * CHUNK)) == 204


def test_a_chunk_store_that_may_not_be_written_is_told(
    glance, place, monkeypatch
):
    images = glance_store.get_store_from_store_identifier(
        'blob1'
    )._repository()

    def refuse(*_, **__):
        from lazyblob import exceptions as lazy

        raise lazy.StoreDenied('permission denied; check who owns it')

    image_id = create(glance)
    with monkeypatch.context() as patch:
        patch.setattr(images.store, 'put', refuse)
        assert upload(glance, image_id, b'some bytes') == 503
    assert status(glance, image_id) == 'queued'
    assert place.is_empty()
    assert upload(glance, image_id, b'some bytes') == 204


@pytest.fixture
def bus(monkeypatch):
    """A message bus within this process: one transport for all of it."""
    conf = cfg.ConfigOpts()
    conf([])
    options = conffixture.ConfFixture(conf)
    options.setUp()
    transport = oslo_messaging.get_rpc_transport(conf, url='fake:///')
    monkeypatch.setattr(
        oslo_messaging, 'get_rpc_transport', lambda *_, **__: transport
    )
    yield conf
    options.cleanUp()


@pytest.fixture
def new_conductor(place, bus):
    """``new_conductor()``: a real one, answering on the bus."""
    running = []

    def start():
        catalog = service.open_catalog(place.options['blob_store_catalog'])
        conductor = service.Conductor(bus, catalog, 'test', 2)
        conductor.start()
        running.append(conductor)
        return conductor

    yield start
    for conductor in running:
        conductor.stop()


@pytest.fixture
def glance_over_rpc(new_glance, place, bus, monkeypatch):
    monkeypatch.setattr(rpcapi, 'TIMEOUT_SECONDS', 1)
    monkeypatch.setattr('glance_store_blob.connection.PAUSE_SECONDS', 0.0)
    options = place.options | {
        'blob_store_catalog': 'rpc://',
        'blob_store_transport_url': 'fake:///',
    }
    return new_glance({'blob1': options}, do_secure_hash=False)


def test_images_go_through_the_conductor(
    glance_over_rpc, new_conductor, place
):
    glance = glance_over_rpc
    new_conductor()
    image_id = create(glance)
    assert upload(glance, image_id, b'some bytes') == 204
    assert download(glance, image_id).body == b'some bytes'
    assert delete(glance, image_id) == 204
    assert place.is_empty()


@pytest.mark.expect_logs('')
def test_without_the_conductor_users_are_told_to_come_back(
    glance_over_rpc, new_conductor, place
):
    glance = glance_over_rpc
    image_id = create(glance)
    assert upload(glance, image_id, b'some bytes') == 503
    assert status(glance, image_id) == 'queued'
    assert place.is_empty()

    conductor = new_conductor()
    assert upload(glance, image_id, b'some bytes') == 204

    conductor.stop()
    assert download(glance, image_id).status_code == 503
    assert delete(glance, image_id) == 503
    assert status(glance, image_id) == 'active'

    new_conductor()
    assert download(glance, image_id).body == b'some bytes'
    assert delete(glance, image_id) == 204
    assert place.is_empty()
