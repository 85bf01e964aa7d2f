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
"""Servers with lazy disks, through Nova's own API."""

import json

import fixtures
import nova.conf
import pytest
from nova import objects
from nova.virt.libvirt import driver as libvirt_driver

import nova_harness
from nova_lazyimage import exceptions
from nova_lazyimage import marker

CONF = nova.conf.CONF


class BootTest(nova_harness.LazyBase):
    def test_a_server_boots_from_a_clone_and_copies_nothing(self):
        server = self.boot()

        disk = self.agent.disks[server['id'], 'disk']
        self.assertEqual(nova_harness.LAZY, disk['clone'])
        self.assertEqual(server['tenant_id'], disk['project_id'])
        self.assertIn(self.lazy_path(server), self.xml(server))
        marker = json.loads(
            (self.instance_folder(server) / 'lazyimage.json').read_text()
        )
        self.assertEqual('attached', marker['disks']['disk']['state'])
        self.assertFalse((self.instance_folder(server) / 'disk').exists())
        self.assertIsNone(self.fetched)

    def test_the_disk_has_the_size_of_the_flavor(self):
        server = self.boot(flavor_id=self._create_flavor(disk=3))

        disk = self.agent.disks[server['id'], 'disk']
        self.assertEqual(3 * 2**30, disk['size_bytes'])

    def test_an_image_larger_than_the_flavor_is_refused_and_released(self):
        self.agent.add_blob(nova_harness.LAZY, size_bytes=5 * 2**30)
        server = self.boot_fails(flavor_id=self._create_flavor(disk=3))

        self.assert_nothing_left(server)

    def test_the_host_has_the_trait(self):
        traits = self._get_provider_traits(self.compute_rp_uuids['compute1'])
        self.assertIn('CUSTOM_LAZYIMAGE', traits)

    def test_ephemeral_and_swap_disks_are_plain_files(self):
        flavor = self._create_flavor(disk=1, ephemeral=1, swap=64)
        server = self.boot(flavor_id=flavor)

        xml = self.xml(server)
        folder = self.instance_folder(server)
        self.assertIn(self.lazy_path(server), xml)
        self.assertIn(f'{folder}/disk.eph0', xml)
        self.assertIn(f'{folder}/disk.swap', xml)
        self.assertEqual([(server['id'], 'disk')], list(self.agent.disks))

    def test_a_config_drive_is_a_plain_file(self):
        self.useFixture(
            fixtures.MonkeyPatch(
                'nova.virt.configdrive.ConfigDriveBuilder.make_drive',
                lambda builder, path: open(path, 'wb').close(),
            )
        )
        server = self.boot(config_drive=True)

        folder = self.instance_folder(server)
        self.assertTrue((folder / 'disk.config').exists())
        self.assertIn(f'{folder}/disk.config', self.xml(server))
        self.assertIn(self.lazy_path(server), self.xml(server))


class PowerTest(nova_harness.LazyBase):
    def setUp(self):
        super().setUp()
        self.server = self.boot()
        self.agent.calls.clear()

    def test_a_stop_ends_the_waiting_reads_and_a_start_allows_them(self):
        poweroff = libvirt_driver.libvirt_guest.Guest.poweroff

        def recorded(guest):
            self.agent.calls.append('POWEROFF')
            poweroff(guest)

        self.useFixture(
            fixtures.MonkeyPatch(
                'nova.virt.libvirt.guest.Guest.poweroff', recorded
            )
        )
        self._stop_server(self.server)

        ended = self.index('end-misses')
        self.assertLess(ended, self.agent.calls.index('POWEROFF'))
        self.assertFalse(self.disk()['misses'])

        self._start_server(self.server)

        self.assertTrue(self.disk()['misses'])

    def test_no_start_leaves_a_file_in_the_servers_folder(self):
        self._stop_server(self.server)
        self._start_server(self.server)
        self._reboot_server(self.server, hard=True)

        folder = self.instance_folder(self.server)
        self.assertFalse((folder / 'disk').exists())
        self.assertIn(self.lazy_path(self.server), self.xml(self.server))

    def test_a_soft_reboot_keeps_the_disk(self):
        self._reboot_server(self.server)
        self.assertIn((self.server['id'], 'disk'), self.agent.disks)

    def test_pause_and_suspend_keep_the_disk(self):
        for action, state in (
            ('pause', 'PAUSED'),
            ('unpause', 'ACTIVE'),
            ('suspend', 'SUSPENDED'),
            ('resume', 'ACTIVE'),
        ):
            self.api.post_server_action(self.server['id'], {action: None})
            self._wait_for_state_change(self.server, state)
        self.assertIn(self.lazy_path(self.server), self.xml(self.server))
        self.assertEqual([], self.agent.calls_of('DELETE'))

    def test_soft_delete_keeps_the_disk_until_it_is_restored(self):
        self.flags(reclaim_instance_interval=3600)
        self.api.delete_server(self.server['id'])
        self._wait_for_state_change(self.server, 'SOFT_DELETED')
        self.assertIn((self.server['id'], 'disk'), self.agent.disks)

        self.api.post_server_action(self.server['id'], {'restore': {}})
        self._wait_for_state_change(self.server, 'ACTIVE')
        self.assertTrue(self.disk()['misses'])

    def test_a_server_whose_disk_the_agent_lost_does_not_start(self):
        self._stop_server(self.server)
        self.agent.disks.clear()

        self.api.post_server_action(self.server['id'], {'os-start': None})

        self.wait_for_failed(self.server, 'start', 'compute_start_instance')
        self.assertEqual({}, self.agent.disks)
        self.assertEqual('SHUTOFF', self.state(self.server))

    def test_a_server_whose_disk_is_broken_does_not_start(self):
        self._stop_server(self.server)
        self.disk().update(state='broken', error='its delta is gone')

        self.api.post_server_action(self.server['id'], {'os-start': None})

        self.wait_for_failed(self.server, 'start', 'compute_start_instance')

    def test_a_reboot_with_the_agent_away_leaves_the_guest_running(self):
        domain = self.conn.lookupByUUIDString(self.server['id']).ID()
        self.agent.away()

        self.api.post_server_action(
            self.server['id'], {'reboot': {'type': 'HARD'}}
        )
        self._wait_for_state_change(self.server, 'ACTIVE')
        self.wait_for_no_task(self.server)

        same = self.conn.lookupByUUIDString(self.server['id']).ID()
        self.assertEqual(domain, same)

    @pytest.mark.expect_logs('Cannot end the waiting reads')
    def test_a_server_is_stopped_while_the_agent_is_away(self):
        self.agent.away()
        self._stop_server(self.server)

    def test_a_start_waits_for_an_agent_that_restarts(self):
        self._stop_server(self.server)
        self.agent.fail('GET', 'disk$', 503, 'NotReady', count=2)
        self._start_server(self.server)

    def test_the_audit_asks_the_agent_once_and_never_the_mount(self):
        self.disk().update(local_bytes=2**20)
        self.driver._sizes._until = 0
        over = self.driver._get_disk_over_committed_size_total()
        self.driver._get_disk_over_committed_size_total()

        self.assertEqual(self.disk()['size_bytes'] - 2**20, over)
        self.assertEqual(1, len(self.agent.calls_of('GET /v1/mirrors$')))

    @pytest.mark.expect_logs('Sizes of lazy disks are not known')
    def test_the_audit_survives_an_agent_that_is_away(self):
        size_bytes = self.disk()['size_bytes']
        self.agent.away()
        self.driver._sizes._until = 0
        over = self.driver._get_disk_over_committed_size_total()
        self.assertEqual(size_bytes, over)


class DeleteTest(nova_harness.LazyBase):
    def test_a_deleted_server_leaves_nothing(self):
        server = self.boot()
        self._delete_server(server)
        self.assert_nothing_left(server)

    @pytest.mark.expect_logs('tombstone')
    @pytest.mark.expect_logs('Cannot end the waiting reads')
    def test_a_server_deleted_while_the_agent_is_away_has_a_tombstone(self):
        server = self.boot()
        self.agent.away()
        self._delete_server(server)

        self.assertTrue((self.agent.released / server['id']).exists())
        self.assertFalse(self.instance_folder(server).exists())

    @pytest.mark.expect_logs('Cannot end the waiting reads')
    def test_without_agent_and_tombstone_the_deletion_can_be_repeated(self):
        server = self.boot()
        self.agent.away()
        self.agent.released.rmdir()
        self.api.delete_server(server['id'])
        self._wait_for_state_change(server, 'ERROR')
        self.assertTrue(
            (self.instance_folder(server) / 'lazyimage.json').exists()
        )

        self.agent.back()
        self.api.delete_server(server['id'])
        self._wait_for_assert(
            lambda: self.assertFalse(self.instance_folder(server).exists())
        )
        self.assertEqual({}, self.agent.disks)

    @pytest.mark.expect_logs('tombstone')
    @pytest.mark.expect_logs('Cannot end the waiting reads')
    def test_a_tombstone_does_not_take_a_rebuilt_disk_along(self):
        server = self.boot()
        self.agent.fail('DELETE', 'mirrors/[^/]*$', 503, 'NotReady')
        self._rebuild_server(server, nova_harness.LAZY)

        self.assertFalse((self.agent.released / server['id']).exists())
        self.assertIn((server['id'], 'disk'), self.agent.disks)

    def instance(self, server):
        return objects.Instance.get_by_uuid(self.admin_context, server['id'])

    def test_nova_deletes_leftovers_without_a_cleanup(self):
        server = self.boot()
        self.driver.delete_instance_files(self.instance(server))
        self.assert_nothing_left(server)

    def test_a_cleanup_that_keeps_the_disks_keeps_them(self):
        server = self.boot()
        self.driver._cleanup(
            self.admin_context,
            self.instance(server),
            [],
            cleanup_instance_dir=True,
            cleanup_instance_disks=False,
        )
        self.assertIn((server['id'], 'disk'), self.agent.disks)
        self.assertEqual([], self.agent.calls_of('DELETE .*/disk$')[1:])

    def test_a_disk_that_was_never_inspected_is_not_started_from(self):
        server = self.boot()
        xml = self.xml(server)
        instance = self.instance(server)
        marker.set_disk(instance, 'disk', marker.ATTACHING)
        self.assertRaises(
            exceptions.DiskNotServed,
            self.driver._create_guest,
            self.admin_context,
            xml,
            instance,
        )


class RescueTest(nova_harness.LazyBase):
    def setUp(self):
        super().setUp()
        self.server = self.boot()
        self.rescue_path = f'{self.lazy_path(self.server)}.rescue'

    def test_the_rescue_disk_is_a_clone_that_unrescue_releases(self):
        self._rescue_server(self.server)

        self.assertIn((self.server['id'], 'disk.rescue'), self.agent.disks)
        self.assertIn(self.rescue_path, self.xml(self.server))

        self._unrescue_server(self.server)

        self.assertEqual([(self.server['id'], 'disk')], list(self.agent.disks))
        self.assertNotIn(self.rescue_path, self.xml(self.server))
        self.assertTrue(self.disk()['misses'])

    @pytest.mark.expect_logs('rescue disk is not released yet')
    def test_a_rescue_disk_that_was_left_is_not_used_again(self):
        self._rescue_server(self.server)
        self.agent.fail('DELETE', 'disk.rescue', 503, 'CatalogUnavailable')
        self._unrescue_server(self.server)
        self.agent.disks[self.server['id'], 'disk.rescue']['old'] = True

        self._rescue_server(self.server)

        fresh = self.agent.disks[self.server['id'], 'disk.rescue']
        self.assertNotIn('old', fresh)

    def test_deleting_a_rescued_server_leaves_nothing(self):
        self._rescue_server(self.server)
        self._delete_server(self.server)
        self.assert_nothing_left(self.server)

    def test_a_copied_rescue_image_stays_a_plain_file(self):
        server_id = self.server['id']
        self.api.post_server_action(
            server_id, {'rescue': {'rescue_image_ref': nova_harness.PLAIN}}
        )
        self._wait_for_state_change(self.server, 'RESCUE')
        plain = self.instance_folder(self.server) / 'disk.rescue'
        self.assertTrue(plain.exists())
        self.assertIn(str(plain), self.xml(self.server))

        self._unrescue_server(self.server)

        self.assertFalse(plain.exists())
        self.assertIn((server_id, 'disk'), self.agent.disks)


class RebuildTest(nova_harness.LazyBase):
    def test_a_rebuilt_server_has_a_new_disk(self):
        server = self.boot()
        self.disk_of(server)['old'] = True
        other = nova_harness.uuids.other_image
        self.add_image(other, stores='local, blob1')
        self.agent.add_blob(other)

        self._rebuild_server(server, other)

        self.assertEqual(other, self.disk_of(server)['clone'])
        self.assertNotIn('old', self.disk_of(server))

    def test_a_rebuild_may_change_what_kind_of_disk_it_is(self):
        server = self.boot()
        self._rebuild_server(server, nova_harness.PLAIN)
        self.assertEqual({}, self.agent.disks)
        self.assertTrue((self.instance_folder(server) / 'disk').exists())

        self._rebuild_server(server, nova_harness.LAZY)
        self.assertFalse((self.instance_folder(server) / 'disk').exists())
        self.assertIn(self.lazy_path(server), self.xml(server))
