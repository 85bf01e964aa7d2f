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
"""Nova's base class for unit tests, the double, and servers of paper."""

import contextlib
import os
import types

import fixtures
import nova.conf
from nova import test
from oslo_utils.fixture import uuidsentinel as uuids

import nova_agent_double
import nova_lazyimage.driver  # noqa: F401  (registers [lazyimage])

CONF = nova.conf.CONF


class UnitTest(test.NoDBTestCase):
    """A host with an agent."""

    def setUp(self):
        super().setUp()
        self.folder = self.useFixture(fixtures.TempDir()).path
        self.instances = os.path.join(self.folder, 'instances')
        os.mkdir(self.instances)
        self.agent = nova_agent_double.AgentDouble(self.folder, CONF.host)
        self.agent.start()
        self.addCleanup(self.agent.stop)
        self.flags(instances_path=self.instances)
        self.flags(compute_driver='lazyimage.LazyLibvirtDriver')
        self.flags(use_cow_images=False, force_raw_images=True)
        self.flags(images_type='raw', virt_type='kvm', group='libvirt')
        self.flags(send_service_user_token=True, group='service_user')
        self.flags(
            agent_socket=self.agent.socket,
            mount_root=self.agent.mount_root,
            released_directory=str(self.agent.released),
            agent_timeout_seconds=1,
            agent_start_timeout_seconds=0,
            group='lazyimage',
        )
        self.instance = self.server()

    def __delattr__(self, name):
        # Nova's tearDown has deleted what pytest put here.
        with contextlib.suppress(AttributeError):
            super().__delattr__(name)

    def server(self, uuid=uuids.server, **more):
        facts = {
            'uuid': uuid,
            'name': 'instance-1',
            'host': CONF.host,
            'image_ref': uuids.image,
            'project_id': 'project',
            'trusted_certs': None,
            'migration_context': None,
        }
        return types.SimpleNamespace(**{**facts, **more})

    def in_folder(self, name, content=''):
        folder = os.path.join(self.instances, self.instance.uuid)
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, name)
        with open(path, 'w', encoding='utf-8') as file:
            file.write(content)
        return path
