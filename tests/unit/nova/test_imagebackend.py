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
"""Which class a disk has, and how a disk is made or not at all."""

import json
import os
from unittest import mock

import fixtures
import nova_unit
import pytest
from nova import exception
from nova.virt.libvirt import imagebackend as nova_imagebackend
from oslo_utils.fixture import uuidsentinel as uuids

from nova_lazyimage import authorization
from nova_lazyimage import disks
from nova_lazyimage import exceptions
from nova_lazyimage import imagebackend
from nova_lazyimage import marker

MIB = 1024**2


class RoutingTest(nova_unit.UnitTest):
    def setUp(self):
        super().setUp()
        self.backend = imagebackend.LazyBackend(False)
        self.useFixture(
            fixtures.MonkeyPatch(
                'nova.virt.libvirt.imagebackend.Flat._get_driver_format',
                lambda flat: 'raw',
            )
        )

    def kind(self, name='disk', **kwargs):
        return type(self.backend.by_name(self.instance, name, **kwargs))

    def test_a_new_root_disk_is_lazy(self):
        for name in ('disk', 'disk.rescue'):
            self.assertIs(imagebackend.LazyImage, self.kind(name))

    def test_every_other_disk_is_plain(self):
        for name in (
            'disk.local',
            'disk.eph0',
            'disk.swap',
            'disk.config',
            'disk.config.rescue',
            'kernel',
            'ramdisk.rescue',
            '/some/where/disk',
        ):
            self.assertIs(nova_imagebackend.Flat, self.kind(name))
            self.assertIs(
                nova_imagebackend.Flat, self.kind(name, image_type='raw')
            )

    def test_a_disk_of_another_type_is_that(self):
        self.assertIs(
            nova_imagebackend.Qcow2, self.kind('disk', image_type='qcow2')
        )

    def test_a_plain_file_stays_plain(self):
        self.in_folder('disk')
        self.assertIs(nova_imagebackend.Flat, self.kind())

    def test_a_file_that_was_qcow2_before_stays_qcow2(self):
        path = self.in_folder('disk')
        self.in_folder('disk.info', json.dumps({path: 'qcow2'}))
        self.assertIs(nova_imagebackend.Qcow2, self.kind())

    def test_a_plain_file_that_is_lost_is_not_replaced_by_the_image(self):
        path = self.in_folder('disk')
        os.unlink(path)
        self.in_folder('disk.info', json.dumps({path: 'raw'}))
        self.assertIs(nova_imagebackend.Flat, self.kind())

    def test_the_marker_decides_whatever_else_is_there(self):
        marker.set_disk(self.instance, 'disk', marker.ATTACHED)
        path = self.in_folder('disk')
        self.in_folder('disk.info', json.dumps({path: 'qcow2'}))
        self.agent.away()
        self.assertIs(imagebackend.LazyImage, self.kind())

    def test_a_damaged_marker_is_no_licence_to_guess(self):
        self.in_folder('lazyimage.json', '{')
        self.assertRaises(exceptions.MarkerDamaged, self.kind)

    def test_a_path_below_the_mount_is_lazy_and_no_other(self):
        lazy = disks.path_of(self.instance.uuid, 'disk')
        image = self.backend.by_libvirt_path(self.instance, lazy, 'raw')
        self.assertIsInstance(image, imagebackend.LazyImage)
        self.assertEqual(lazy, image.path)
        for path in (
            os.path.join(self.instances, self.instance.uuid, 'disk'),
            f'{self.agent.mount_root}-other/{self.instance.uuid}/disk',
        ):
            image = self.backend.by_libvirt_path(self.instance, path, 'raw')
            self.assertIsInstance(image, nova_imagebackend.Flat)

    def test_the_path_of_another_server_is_refused(self):
        other = disks.path_of(uuids.other, 'disk')
        self.assertRaises(
            exception.InvalidDevicePath,
            self.backend.by_libvirt_path,
            self.instance,
            other,
        )

    def test_asking_for_a_disk_asks_nobody(self):
        marker.set_disk(self.instance, 'disk', marker.ATTACHED)
        image = self.backend.by_name(self.instance, 'disk')
        image.get_model(None)
        self.assertEqual([], self.agent.calls)

    def test_a_server_that_boots_from_a_volume_is_not_asked_for(self):
        image = self.backend.by_name(self.instance, 'disk')
        self.assertFalse(image.exists())
        self.assertEqual([], self.agent.calls)

    def test_what_nova_asks_of_the_class(self):
        cls = self.backend.backend()
        self.assertTrue(cls.SUPPORTS_CLONE)
        self.assertFalse(cls.SUPPORTS_LUKS)
        self.assertFalse(cls.is_shared_block_storage())
        self.assertFalse(cls.is_file_in_instance_path())


class MakeTest(nova_unit.UnitTest):
    def setUp(self):
        super().setUp()
        self.agent.add_blob(uuids.image)
        self.image = {
            'id': uuids.image,
            'status': 'active',
            'disk_format': 'raw',
            'container_format': 'bare',
            'stores': 'blob1',
        }
        for name, value in (
            ('nova.image.glance.API.get', lambda *a, **k: dict(self.image)),
            ('nova_lazyimage.authorization.check_download', mock.Mock()),
        ):
            self.useFixture(fixtures.MonkeyPatch(name, value))
        self.backend = imagebackend.LazyBackend(False)

    def make(self, size=16 * MIB):
        disk = self.backend.by_name(self.instance, 'disk')
        disk.create_image(
            mock.Mock(side_effect=AssertionError('fetched')),
            '/no/base',
            size,
            context=mock.Mock(),
            image_id=uuids.image,
        )
        return disk

    def test_the_marker_is_there_before_the_agent_hears_of_it(self):
        seen = []

        def look(verb, path, body):
            if verb == 'PUT':
                seen.append(marker.read(self.instance)['disk']['state'])
            if 'head' in path:
                seen.append(marker.read(self.instance)['disk']['state'])

        self.agent.on_call = look
        self.make()
        self.assertEqual(['attaching', 'attaching'], seen)
        self.assertTrue(marker.is_attached(self.instance, 'disk'))

    def test_making_it_again_changes_nothing(self):
        self.make()
        self.agent.calls.clear()
        disk = self.make()
        self.assertTrue(disk.exists())
        self.assertEqual([], self.agent.calls_of('PUT|DELETE|POST'))

    def test_a_larger_flavor_grows_it(self):
        self.make()
        disk = self.make(32 * MIB)
        self.assertEqual(32 * MIB, disk.get_disk_size('ignored'))
        entry = marker.read(self.instance)['disk']
        self.assertEqual(32 * MIB, entry['size_bytes'])

    def test_what_was_not_finished_is_made_and_inspected_again(self):
        marker.set_disk(self.instance, 'disk', marker.ATTACHING)
        self.agent.disks[self.instance.uuid, 'disk'] = {'old': True}
        disk = self.backend.by_name(self.instance, 'disk')
        self.assertFalse(disk.exists())

        self.make()

        self.assertEqual(1, len(self.agent.calls_of('head')))
        self.assertNotIn('old', self.agent.disks[self.instance.uuid, 'disk'])

    def test_a_disk_that_the_agent_lost_is_never_made_again(self):
        self.make()
        self.agent.disks.clear()
        self.assertRaises(exceptions.DiskNotServed, self.make)
        self.assertEqual({}, self.agent.disks)

    @pytest.mark.expect_logs('Cannot release disk')
    def test_what_cannot_be_undone_stays_marked(self):
        self.agent.fail('GET', 'head', 500, 'InternalError')
        released = []

        def away(verb, path, body):
            if verb == 'DELETE':
                released.append(path)
                if len(released) == 2:
                    raise ConnectionAbortedError

        self.agent.on_call = away
        self.assertRaises(exceptions.AgentRefused, self.make)
        self.assertEqual(
            'attaching', marker.read(self.instance)['disk']['state']
        )

    def test_an_earlier_life_of_the_server_goes_first(self):
        (self.agent.released / self.instance.uuid).touch()
        self.agent.disks[self.instance.uuid, 'disk.rescue'] = {}
        self.make()
        self.assertEqual([], os.listdir(self.agent.released))
        self.assertEqual(
            [(self.instance.uuid, 'disk')], list(self.agent.disks)
        )

    def test_trusted_certificates_need_all_of_the_bytes(self):
        self.assertRaises(
            exceptions.ImageNotLazy,
            authorization.lazy_image,
            None,
            uuids.image,
            mock.Mock(),
        )

    def test_the_stores_may_come_as_a_property(self):
        del self.image['stores']
        self.image['properties'] = {'stores': 'local,blob1'}
        self.make()

    def test_names_of_stores_are_compared_as_a_whole(self):
        self.image['stores'] = 'blob10,myblob1'
        self.assertFalse(authorization.is_lazy(self.image))
