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
"""Moves are refused by the host that knows, before anything is touched."""

import json
from unittest import mock

import nova_unit
from nova import exception

from nova_lazyimage import exceptions
from nova_lazyimage import marker
from nova_lazyimage import refusals
from nova_lazyimage import snapshot


class Stock:
    """Nova's driver, which must not be reached."""

    def __getattr__(self, name):
        raise AssertionError(name)

    def stock(self, *args, **kwargs):
        return 'stock'

    migrate_disk_and_power_off = stock
    finish_migration = stock
    check_can_live_migrate_destination = stock
    check_can_live_migrate_source = stock
    instance_on_disk = stock
    rebuild = stock
    snapshot = stock


class Driver(snapshot.SnapshotMixin, refusals.RefusalsMixin, Stock):
    pass


class RefusalsTest(nova_unit.UnitTest):
    def setUp(self):
        super().setUp()
        self.driver = Driver()
        self.flags(host='here')
        self.instance = self.server(host='here')

    def make_lazy(self):
        marker.set_disk(self.instance, 'disk', marker.ATTACHED)

    def migrate(self):
        return self.driver.migrate_disk_and_power_off(
            None, self.instance, 'dest', None, None
        )

    def finish(self, disk_info):
        return self.driver.finish_migration(
            None,
            None,
            self.instance,
            json.dumps(disk_info),
            None,
            None,
            True,
            None,
            share_info=None,
        )

    def test_a_resize_rolls_back(self):
        self.make_lazy()
        refusal = self.assertRaises(
            exception.InstanceFaultRollback, self.migrate
        )
        self.assertIsInstance(refusal.inner_exception, exception.ResizeError)

    def test_a_plain_server_is_resized_as_ever(self):
        self.assertEqual('stock', self.migrate())

    def test_a_root_disk_that_did_not_arrive_is_not_made_of_the_image(self):
        self.assertRaises(exception.ResizeError, self.finish, [])
        elsewhere = [{'path': '/elsewhere/disk', 'type': 'raw'}]
        self.assertRaises(exception.ResizeError, self.finish, elsewhere)

    def test_a_plain_root_disk_that_arrived_is_taken(self):
        path = self.in_folder('disk')
        self.assertEqual('stock', self.finish([{'path': path, 'type': 'raw'}]))

    def test_a_volume_needs_no_disk_to_arrive(self):
        self.instance.image_ref = ''
        self.assertEqual('stock', self.finish([]))

    def test_a_lazy_server_does_not_leave_alive(self):
        self.make_lazy()
        self.assertRaises(
            exception.MigrationPreCheckError,
            self.driver.check_can_live_migrate_source,
            None,
            self.instance,
            None,
        )

    def test_a_plain_server_may_leave_alive(self):
        self.assertEqual(
            'stock',
            self.driver.check_can_live_migrate_source(
                None, self.instance, None
            ),
        )

    def test_no_server_with_an_image_comes_alive(self):
        check = self.driver.check_can_live_migrate_destination
        self.assertRaises(
            exception.MigrationPreCheckError,
            check,
            None,
            self.instance,
            None,
            None,
        )
        self.instance.image_ref = ''
        self.assertEqual('stock', check(None, self.instance, None, None))

    def test_an_evacuation_is_refused_where_nova_asks_first(self):
        self.instance.host = 'dead'
        refusal = self.assertRaises(
            exception.InstanceFaultRollback,
            self.driver.instance_on_disk,
            self.instance,
        )
        self.assertIsInstance(
            refusal.inner_exception, exception.InstanceEvacuateNotSupported
        )

    def test_and_again_where_it_rebuilds(self):
        self.instance.host = 'dead'
        arguments = [None, self.instance] + [None] * 7
        self.assertRaises(
            exception.InstanceFaultRollback,
            self.driver.rebuild,
            *arguments,
            evacuate=True,
        )
        self.assertEqual('stock', self.driver.rebuild(*arguments))

    def test_a_server_that_boots_from_a_volume_is_evacuated(self):
        self.instance.host = 'dead'
        self.instance.image_ref = ''
        self.assertEqual('stock', self.driver.instance_on_disk(self.instance))

    def test_no_snapshot_carries_a_server_to_another_cell(self):
        self.instance.migration_context = mock.Mock()
        self.make_lazy()
        self.assertRaises(
            exceptions.SnapshotFailed,
            self.driver.snapshot,
            None,
            self.instance,
            'image',
            None,
        )
