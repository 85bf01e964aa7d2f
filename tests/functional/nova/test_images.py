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
"""Which images boot, which are copied, which are refused."""

import os
import struct

import glanceclient.exc
import pytest

import nova_harness

# A complete header, version 3, of a disk of 1 MiB.
QCOW2_HEAD = struct.pack(
    '>4sIQIIQIIQQIIQQQQII',
    b'QFI\xfb',
    3,
    0,
    0,
    16,
    2**20,
    0,
    1,
    0x30000,
    0x10000,
    1,
    0,
    0,
    0,
    0,
    0,
    4,
    104,
)


class FallbackTest(nova_harness.LazyBase):
    def test_an_image_of_another_store_is_copied(self):
        server = self.boot(image=nova_harness.PLAIN)

        self.assertEqual(nova_harness.PLAIN, self.fetched)
        path = self.instance_folder(server) / 'disk'
        self.assertEqual(b'copied', path.read_bytes())
        self.assertIn(str(path), self.xml(server))
        self.assertEqual({}, self.agent.disks)
        self.assertFalse((path.parent / 'lazyimage.json').exists())

    def test_a_copied_server_stays_plain_for_life(self):
        server = self.boot(image=nova_harness.PLAIN)
        path = str(self.instance_folder(server) / 'disk')
        self._stop_server(server)
        self._start_server(server)
        self._reboot_server(server, hard=True)

        self.assertIn(path, self.xml(server))
        self._delete_server(server)
        self.assertFalse(os.path.exists(path))

    def test_a_copied_server_is_snapshot_as_nova_does_it(self):
        server = self.boot(image=nova_harness.PLAIN)
        self._stop_server(server)
        made = []

        def extract(flat, target, out_format):
            made.append(out_format)
            with open(target, 'wb') as file:
                file.write(b'copied')

        self.patch(
            'nova.virt.libvirt.imagebackend.Flat.snapshot_extract', extract
        )
        self._snapshot_server(server, 'snap')
        self.wait_for_no_task(server)

        self.assertEqual(['raw'], made)
        self.assertEqual([], self.agent.calls_of('commits'))

    def test_a_qcow2_image_is_copied(self):
        self.add_image(nova_harness.LAZY, stores='blob1', disk_format='qcow2')
        self.boot()
        self.assertEqual(nova_harness.LAZY, self.fetched)

    def test_an_image_whose_signature_is_verified_is_copied(self):
        self.flags(verify_glance_signatures=True, group='glance')
        self.boot()
        self.assertEqual(nova_harness.LAZY, self.fetched)

    def test_an_image_that_this_repository_lacks_is_copied(self):
        self.agent.blobs.clear()
        server = self.boot()
        self.assertEqual(nova_harness.LAZY, self.fetched)
        folder = self.instance_folder(server)
        self.assertFalse((folder / 'lazyimage.json').exists())

    def test_without_fallback_the_server_ends_in_error(self):
        self.flags(fallback_fetch='refuse', group='lazyimage')
        server = self.boot_fails(image=nova_harness.PLAIN)

        self.assertIn('glance_stores', self.fault(server))
        self.assertIsNone(self.fetched)
        self.assert_nothing_left(server)

    def test_precaching_copies_only_what_is_not_lazy(self):
        images = 'nova.virt.images.fetch_to_raw'
        copied = []
        self.patch(images, lambda context, image, path: copied.append(image))
        for image in (nova_harness.LAZY, nova_harness.PLAIN):
            self.driver.cache_image(self.admin_context, image)
        self.assertEqual([nova_harness.PLAIN], copied)


class AuthorizationTest(nova_harness.LazyBase):
    def assert_refused(self, text):
        server = self.boot_fails()
        self.assertIn(text, self.fault(server))
        self.assert_nothing_left(server)
        self.assertEqual([], self.agent.calls_of('PUT'))
        self.assertIsNone(self.fetched)

    def test_one_byte_is_asked_for_with_the_token_of_the_request(self):
        self.boot()
        self.assertEqual(
            [
                {
                    'controller': 'http_client',
                    'args': (f'/v2/images/{nova_harness.LAZY}/file',),
                }
            ],
            self.downloads,
        )

    def test_an_image_that_may_not_be_downloaded_is_refused(self):
        self.denied = glanceclient.exc.HTTPForbidden()
        self.assert_refused('may not download')

    def test_an_image_that_is_not_shared_any_more_is_refused(self):
        self.denied = glanceclient.exc.HTTPNotFound()
        self.assert_refused('may not download')

    def test_a_deactivated_image_is_refused(self):
        show = self.glance.show

        def deactivated(*args, **kwargs):
            # Between the API's look at the image and the host's.
            image = show(*args, **kwargs)
            if self.in_host():
                image['status'] = 'deactivated'
            return image

        self.patch(
            'nova.image.glance.API.get',
            lambda api, *a, **k: deactivated(*a, **k),
        )
        self.assert_refused('not active')

    def test_metadata_asks_for_no_byte(self):
        self.flags(image_authorization='metadata', group='lazyimage')
        self.denied = glanceclient.exc.HTTPForbidden()
        self.boot()
        self.assertEqual([], self.downloads)


class InspectionTest(nova_harness.LazyBase):
    def test_raw_that_begins_with_a_qcow2_header_is_refused(self):
        self.agent.add_blob(nova_harness.LAZY, QCOW2_HEAD)
        server = self.boot_fails()

        self.assertIn('is unacceptable', self.fault(server))
        self.assertIsNone(self.fetched)
        self.assert_nothing_left(server)

    def test_the_operator_may_switch_the_inspection_off(self):
        self.flags(disable_deep_image_inspection=True, group='workarounds')
        self.agent.add_blob(nova_harness.LAZY, QCOW2_HEAD)
        self.boot()
        self.assertEqual([], self.agent.calls_of('head'))

    def test_nothing_is_probed_by_qemu_img(self):
        def probe(*args, **kwargs):
            raise AssertionError(f'qemu-img was asked: {args}')

        self.patch('nova.virt.images.qemu_img_info', probe)
        self.patch('nova.virt.disk.api.get_disk_info', probe)
        self.patch('nova.virt.disk.api.extend', probe)
        server = self.boot(flavor_id=self._create_flavor(disk=3))
        self._reboot_server(server, hard=True)
        self._snapshot_server(server, 'snap')
        self.wait_for_no_task(server)
        self._delete_server(server)


class AgentAwayTest(nova_harness.LazyBase):
    def assert_fails(self):
        server = self.boot_fails()
        self.assert_nothing_left(server)

    @pytest.mark.expect_logs('Cannot release|tombstone|end the waiting')
    def test_no_agent_at_all(self):
        self.agent.away()
        server = self.boot_fails()
        self.assertFalse(self.instance_folder(server).exists())
        self.assertTrue((self.agent.released / server['id']).exists())

    def test_the_catalog_is_away_when_the_disk_is_attached(self):
        self.agent.fail('PUT', '', 503, 'CatalogUnavailable', count=99)
        self.assert_fails()

    def test_the_catalog_comes_back_in_time(self):
        self.agent.fail('PUT', '', 503, 'CatalogUnavailable', count=2)
        self.boot()

    def test_the_store_is_away_when_the_head_is_read(self):
        self.agent.fail('GET', 'head', 503, 'TemporaryStoreError', count=99)
        self.assert_fails()

    def test_the_agent_is_away_when_the_disk_grows(self):
        self.agent.fail('POST', 'grow', 0, count=99)
        self.assert_fails()

    def test_the_host_is_full(self):
        self.agent.fail('PUT', '', 507, 'NoSpace', count=99)
        self.assert_fails()

    def test_the_agent_dies_before_the_guest_starts(self):
        self.agent.fail('POST', 'allow-misses', 0, count=99)
        self.assert_fails()

    def test_a_lost_answer_to_the_attach_makes_no_second_disk(self):
        self.agent.fail('PUT', '', 0, count=1)
        server = self.boot()
        self.assertEqual([(server['id'], 'disk')], list(self.agent.disks))
