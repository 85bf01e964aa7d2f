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
"""Images that may not be booted, not so, or not lazily."""

import os
import subprocess

import parts
import pytest
from cloud import settings
from cloud.api import ApiError
from cloud.tenant import Tenant
from cloud.tenant import until


@pytest.fixture
def image(demo, guest_image):
    """An image of the test's own."""
    image = demo.upload(guest_image, 'own')
    yield image
    demo.delete_image(image['id'])


def fails(tenant, image_id):
    """A server from the image ends in error; what it is told."""
    server = tenant.boot('never', image_id)
    fault = tenant.wait_server(server, 'ERROR')['fault']
    assert (server, 'disk') not in parts.mirrors()
    tenant.delete('nova', f'/servers/{server}')
    return fault['message']


def test_a_deactivated_image_boots_nothing(demo, admin, image):
    path = f'/v2/images/{image["id"]}/actions'
    admin.post('glance', f'{path}/deactivate', None)
    with pytest.raises(ApiError) as refused:
        demo.boot('never', image['id'])
    assert refused.value.status == 400
    assert 'not active' in refused.value.body
    admin.post('glance', f'{path}/reactivate', None)


def test_an_image_of_another_project_boots_nothing(other, image):
    with pytest.raises(ApiError) as refused:
        other.boot('never', image['id'])
    assert refused.value.status in (400, 404)


def test_an_image_no_longer_shared_keeps_the_servers_made_from_it(
    demo, other, image
):
    other.token()
    path = f'/v2/images/{image["id"]}'
    demo.open(
        'PATCH',
        settings.url('glance', path),
        b'[{"op": "replace", "path": "/visibility", "value": "shared"}]',
        {'Content-Type': 'application/openstack-images-v2.1-json-patch'},
    ).close()
    demo.post('glance', f'{path}/members', {'member': other.project_id})
    server = other.boot('guest of another', image['id'])
    other.wait_server(server)
    demo.delete('glance', f'{path}/members/{other.project_id}')
    with pytest.raises(ApiError) as refused:
        other.boot('never', image['id'])
    assert refused.value.status in (400, 404)
    assert other.wait_server(server)['status'] == 'ACTIVE'
    assert parts.mirror(server)['project_id'] == other.project_id
    other.delete_server(server)


UNSAFE = ('ImageUnacceptable', 'is unacceptable', 'failed safety check')


def qcow2(path, *options):
    """What a hypervisor that probes formats would take for a qcow2."""
    subprocess.run(
        ['qemu-img', 'create', '-q', '-u', '-f', 'qcow2']
        + [*options, str(path), '1G'],
        check=True,
    )
    return path


@pytest.mark.expect_errors('failed safety checks')
def test_glance_keeps_no_raw_image_that_is_a_qcow2_with_a_backing_file(
    demo, tmp_path
):
    options = ('-b', '/etc/shadow', '-F', 'raw')
    path = qcow2(tmp_path / 'trap', *options)
    trap = demo.create_image('trap')
    with pytest.raises(ApiError) as refused:
        demo.upload_data(trap['id'], path)
    assert refused.value.status == 415
    assert demo.image(trap['id'])['status'] == 'queued'
    demo.delete_image(trap['id'])
    assert trap['id'] not in parts.blobs()


@pytest.mark.expect_errors(*UNSAFE)
def test_a_raw_image_whose_bytes_begin_as_a_qcow2_boots_nothing(
    demo, tmp_path
):
    trap = demo.upload(qcow2(tmp_path / 'trap'), 'trap')
    assert 'unacceptable' in fails(demo, trap['id'])
    demo.delete_image(trap['id'])
    assert trap['id'] not in parts.blobs()


@pytest.mark.expect_errors(*UNSAFE)
def test_a_snapshot_whose_bytes_begin_as_a_qcow2_boots_nothing(
    demo, base, tmp_path
):
    """As if its guest had written the header."""
    server = demo.boot('writer', base['id'])
    demo.wait_server(server)
    header = qcow2(tmp_path / 'header').read_bytes()
    with open(parts.MOUNT / server / 'disk', 'r+b') as disk:
        disk.write(header[:65536])
        os.fsync(disk.fileno())
    trap = demo.snapshot(server, 'trap')
    demo.wait_image(trap)
    demo.wait_server(server)
    assert 'unacceptable' in fails(demo, trap)
    demo.delete_server(server)
    demo.delete_image(trap)


def test_a_qcow2_image_is_copied_and_boots(demo, guest_image, tmp_path):
    path = tmp_path / 'guest.qcow2'
    subprocess.run(
        ['qemu-img', 'convert', '-O', 'qcow2', str(guest_image), str(path)],
        check=True,
    )
    image = demo.upload(path, 'qcow2', disk_format='qcow2')
    server = parts.Guest(demo, demo.boot('copied', image['id']))
    server.ready()
    assert (server.id, 'disk') not in parts.mirrors()
    assert (parts.INSTANCES / server.id / 'disk').exists()
    demo.delete_server(server.id)
    demo.delete_image(image['id'])


def test_an_image_of_another_store_is_copied(demo, guest_image):
    image = demo.upload(guest_image, 'local', store='local')
    server = demo.boot('copied', image['id'])
    demo.wait_server(server)
    assert (server, 'disk') not in parts.mirrors()
    assert (parts.INSTANCES / server / 'disk').exists()
    demo.delete_server(server)
    demo.delete_image(image['id'])


@pytest.mark.expect_errors('client disconnected')
def test_an_upload_cut_short_leaves_a_queued_image_and_no_blob(
    demo, guest_image
):
    import http.client

    image = demo.create_image('cut')
    connection = http.client.HTTPConnection(
        settings.ADDRESS, settings.PORTS['glance'], timeout=60
    )
    connection.putrequest('PUT', f'/v2/images/{image["id"]}/file')
    connection.putheader('X-Auth-Token', demo.token())
    connection.putheader('Content-Type', 'application/octet-stream')
    connection.putheader('Content-Length', str(guest_image.stat().st_size))
    connection.endheaders()
    with guest_image.open('rb') as stream:
        connection.send(stream.read(8 << 20))
    connection.close()

    def queued():
        return demo.image(image['id'])['status'] == 'queued'

    until(queued, 60, 'the image to be queued again')
    assert image['id'] not in parts.blobs()
    demo.upload_data(image['id'], guest_image)
    assert demo.image(image['id'])['status'] == 'active'
    demo.delete_image(image['id'])


def test_a_user_without_the_image_reads_nothing_of_it(base):
    with pytest.raises(ApiError) as refused:
        Tenant('other').download(base['id'], '/dev/null')
    assert refused.value.status == 404
