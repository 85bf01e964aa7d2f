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
"""The marker: replaced as a whole, synced, never guessed at."""

import os
from unittest import mock

import nova_unit

from nova_lazyimage import exceptions
from nova_lazyimage import marker


class MarkerTest(nova_unit.UnitTest):
    def test_what_was_written_is_read(self):
        marker.set_disk(self.instance, 'disk', marker.ATTACHING, image_id='i')
        marker.set_disk(self.instance, 'disk.rescue', marker.ATTACHED)

        self.assertEqual(
            {
                'disk': {'state': 'attaching', 'image_id': 'i'},
                'disk.rescue': {'state': 'attached'},
            },
            marker.read(self.instance),
        )
        self.assertFalse(marker.is_attached(self.instance, 'disk'))
        self.assertTrue(marker.is_attached(self.instance, 'disk.rescue'))

    def test_no_marker_is_no_lazy_disk(self):
        self.assertEqual({}, marker.read(self.instance))
        self.assertFalse(marker.is_attached(self.instance, 'disk'))

    def test_the_last_disk_takes_the_file_along(self):
        marker.set_disk(self.instance, 'disk', marker.ATTACHED)
        marker.set_disk(self.instance, 'disk.rescue', marker.ATTACHED)
        marker.remove_disk(self.instance, 'disk.rescue')
        self.assertTrue(os.path.exists(marker.path_of(self.instance)))
        marker.remove_disk(self.instance, 'disk')
        self.assertFalse(os.path.exists(marker.path_of(self.instance)))
        marker.remove(self.instance)

    def test_file_and_folder_are_synced_before_it_is_relied_on(self):
        synced = []
        real = os.fsync

        def fsync(descriptor):
            synced.append(os.readlink(f'/proc/self/fd/{descriptor}'))
            real(descriptor)

        with mock.patch('os.fsync', fsync):
            marker.set_disk(self.instance, 'disk', marker.ATTACHING)
        folder = os.path.dirname(marker.path_of(self.instance))
        self.assertEqual(
            [marker.path_of(self.instance) + '.new', folder, self.instances],
            synced,
        )

    def test_a_failed_write_leaves_the_old_marker(self):
        marker.set_disk(self.instance, 'disk', marker.ATTACHED)
        before = marker.read(self.instance)
        with mock.patch('os.fsync', side_effect=OSError(28, 'full')):
            self.assertRaises(
                OSError,
                marker.set_disk,
                self.instance,
                'disk',
                marker.ATTACHING,
            )
        self.assertEqual(before, marker.read(self.instance))
        folder = os.path.dirname(marker.path_of(self.instance))
        self.assertEqual(['lazyimage.json'], os.listdir(folder))

    def test_what_cannot_be_understood_is_no_missing_marker(self):
        for content in (
            '',
            'null',
            '{"version": 2, "disks": {}}',
            '{"version": 1}',
            '{"version": 1, "disks": {"disk": {"state": "gone"}}}',
            '{"version": 1, "disks": {"disk": {}}}',
        ):
            self.in_folder('lazyimage.json', content)
            self.assertRaises(
                exceptions.MarkerDamaged, marker.read, self.instance
            )
