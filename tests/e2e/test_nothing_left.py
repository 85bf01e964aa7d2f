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
"""After everything is deleted, nothing is left; it runs last."""

import parts
import pytest
from cloud.tenant import until


@pytest.fixture(scope='module')
def emptied(admin, demo, other, base):
    """Every server is deleted, and every image but one."""
    for tenant in (demo, other, admin):
        for server in tenant.get('nova', '/servers')['servers']:
            tenant.delete_server(server['id'])
        for image in tenant.get('glance', '/v2/images')['images']:
            owned = image['owner'] == tenant.project_id
            if owned and image['id'] != base['id']:
                tenant.delete_image(image['id'])
    return base['id']


def test_the_catalog_holds_the_base_image_alone(emptied):
    until(
        lambda: set(parts.blobs()) == {emptied},
        30,
        'the other blobs to go',
    )


def test_the_agent_serves_no_disk(emptied):
    assert not parts.mirrors()
    assert not list(parts.MOUNT.iterdir())


def test_no_local_state_is_left(emptied):
    # journal/images is swept within minutes, not at once.
    for name in ('mirrors', 'released', 'manifests'):
        assert not list((parts.STATE / name).iterdir()), name
    assert not list((parts.STATE / 'journal').glob('*.json'))
    assert not list(parts.LIVE.iterdir())


def test_nova_keeps_no_folder_of_a_server(emptied):
    assert not [
        path
        for path in parts.INSTANCES.iterdir()
        if path.is_dir() and len(path.name.partition('_')[0]) == 36
    ]
