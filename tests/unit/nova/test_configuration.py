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
"""Forged configurations: refused at the start, with the remedy."""

import nova_unit
import pytest
from nova import exception

from nova_lazyimage import configuration


class OptionsTest(nova_unit.UnitTest):
    def assert_refused(self, *words):
        refusal = self.assertRaises(
            exception.InvalidConfiguration, configuration.check_options
        )
        for word in words:
            self.assertIn(word, str(refusal))

    def test_the_documented_ones_are_right(self):
        configuration.check_options()

    def test_cow_images(self):
        self.flags(use_cow_images=True)
        self.assert_refused('[DEFAULT] use_cow_images = "True"', 'False')

    def test_images_that_stay_qcow2(self):
        self.flags(force_raw_images=False)
        self.assert_refused('[DEFAULT] force_raw_images', 'True')

    def test_another_kind_of_disk(self):
        self.flags(images_type='qcow2', group='libvirt')
        self.assert_refused('[libvirt] images_type = "qcow2"', 'raw')

    def test_the_default_kind_of_disk(self):
        self.flags(images_type='default', group='libvirt')
        self.assert_refused('[libvirt] images_type = "default"')

    def test_another_format_of_snapshots(self):
        self.flags(snapshot_image_format='qcow2', group='libvirt')
        self.assert_refused('[libvirt] snapshot_image_format = "qcow2"')

    def test_injected_files(self):
        self.flags(inject_partition=-1, group='libvirt')
        self.assert_refused('[libvirt] inject_partition = "-1"', '-2')

    def test_containers(self):
        self.flags(virt_type='lxc', group='libvirt')
        self.assert_refused('[libvirt] virt_type = "lxc"')

    def test_encrypted_ephemeral_storage(self):
        self.flags(enabled=True, group='ephemeral_storage_encryption')
        self.assert_refused('[ephemeral_storage_encryption] enabled')

    def test_a_mount_that_looks_like_a_device(self):
        for root in ('/dev/lazy', '/dev', 'mnt'):
            self.flags(mount_root=root, group='lazyimage')
            self.assert_refused(f'[lazyimage] mount_root = "{root}"')

    def test_no_place_for_tombstones(self):
        self.flags(released_directory='/nonexistent', group='lazyimage')
        self.assert_refused('released_directory = "/nonexistent"')

    def test_no_stores(self):
        self.flags(glance_stores=[], group='lazyimage')
        self.assert_refused('[lazyimage] glance_stores')

    @pytest.mark.expect_logs('send_service_user_token')
    def test_a_missing_service_token_is_told(self):
        self.flags(send_service_user_token=False, group='service_user')
        configuration.check_options()


class AgentTest(nova_unit.UnitTest):
    def assert_refused(self, *words):
        refusal = self.assertRaises(
            exception.InvalidConfiguration,
            configuration.check_agent,
            nova_unit.CONF.host,
        )
        for word in words:
            self.assertIn(word, str(refusal))

    def test_the_hosts_own_agent_is_right(self):
        self.assertTrue(configuration.check_agent(nova_unit.CONF.host))

    def test_no_agent(self):
        self.agent.away()
        self.assert_refused(f'agent_socket = "{self.agent.socket}"')

    def test_an_agent_that_is_never_ready(self):
        self.agent.ready = False
        self.assert_refused('still exporting')

    def test_an_agent_that_becomes_ready_in_time(self):
        self.flags(agent_start_timeout_seconds=30, group='lazyimage')
        self.patch(configuration, 'RETRY_SECONDS', 0.01)
        self.agent.fail('GET', 'status', 0, count=3)
        configuration.check_agent(nova_unit.CONF.host)
        self.assertEqual(4, len(self.agent.calls))

    def test_the_agent_of_another_host(self):
        self.agent.host = 'other'
        self.assert_refused('"other"', '[agent] host')

    def test_another_mount(self):
        self.flags(mount_root='/elsewhere', group='lazyimage')
        self.assert_refused(
            'mount_root = "/elsewhere"', f'"{self.agent.mount_root}"'
        )

    def test_an_agent_of_another_interface(self):
        self.agent.api_version = 2
        self.assert_refused('interface 2')

    def patch(self, target, name, value):
        self.useFixture(
            nova_unit.fixtures.MonkeyPatch(f'{target.__name__}.{name}', value)
        )
