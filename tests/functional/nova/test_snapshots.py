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
"""COMMITs as images, and what must happen when one fails."""

import contextlib

import pytest
from nova import exception

import nova_harness
from nova_lazyimage import frozen
from nova_lazyimage import snapshot


class SnapshotBase(nova_harness.LazyBase):
    def setUp(self):
        super().setUp()
        # Glance's side: queued until it has a location.
        self.activate = True
        create, update = self.glance.create, self.glance.update

        def created(context, metadata, data=None):
            image = create(context, metadata, data)
            image['status'] = 'queued'
            image['owner'] = 'the-owner'
            return image

        def updated(context, image_id, metadata, data=None, **kwargs):
            location = metadata.get('location')
            image = update(context, image_id, metadata, data, **kwargs)
            for name in ('kernel_id', 'ramdisk_id'):
                image['properties'].pop(name, None)
            if location or data is not None:
                image['status'] = 'active' if self.activate else 'queued'
                image['stores'] = 'blob1' if location else 'local'
            return image

        self.glance.create = created
        self.glance.update = updated
        for name in ('freeze', 'thaw'):
            self.patch(
                f'nova.virt.libvirt.guest.Guest.{name}_filesystems',
                lambda guest, name=name: self.quiesce_call(name.upper()),
            )
        self.quiesce_fails = False

    def quiesce_call(self, name):
        self.agent.calls.append(name)
        if self.quiesce_fails and name == 'FREEZE':
            raise exception.InstanceQuiesceFailed(reason='no answer')

    def use_guest_agent(self, **more):
        self.add_image(
            nova_harness.LAZY,
            stores='blob1',
            properties={'hw_qemu_guest_agent': 'yes', **more},
        )

    def snapshot(self, server):
        self.agent.calls.clear()
        self.api.post_server_action(
            server['id'], {'createImage': {'name': 'snap'}}
        )
        self.wait_for_no_task(server)
        found = [
            image
            for image in self.glance.images.values()
            if image['name'] == 'snap'
        ]
        return found[0] if found else None

    def assert_no_image(self, server):
        self.assertIsNone(self.snapshot(server))
        self.assertEqual({}, self.agent.images)
        self.assertEqual('ACTIVE', self.state(server))


class SnapshotTest(SnapshotBase):
    def test_the_image_of_a_running_server_is_active_with_a_location(self):
        server = self.boot()
        image = self.snapshot(server)

        self.assertEqual('active', image['status'])
        self.assertEqual('raw', image['disk_format'])
        self.assertTrue(image['location'].startswith('blob://'))
        self.assertIn(f'/{image["id"]}/', image['location'])
        self.assertEqual({image['id']: 'the-owner'}, self.agent.images)
        self.assertIsNone(self.fetched)

    def test_two_snapshots_may_have_one_name(self):
        server = self.boot()
        first = self.snapshot(server)
        self.snapshot(server)

        self.assertEqual(2, len(self.agent.images))
        self.assertIn(first['id'], self.agent.images)

    def test_a_stopped_server_has_snapshots_too(self):
        self.use_guest_agent(os_require_quiesce='yes')
        server = self.boot()
        self._stop_server(server)
        image = self.snapshot(server)

        self.assertEqual('active', image['status'])
        self.assertNotIn('FREEZE', self.agent.calls)

    def test_a_server_boots_from_a_snapshot(self):
        image = self.snapshot(self.boot())
        second = self.boot(image=image['id'])
        self.assertEqual(image['id'], self.disk_of(second)['clone'])

    def test_shelved_servers_come_back_from_their_snapshot(self):
        server = self.boot()
        self._shelve_server(server)
        self.assertEqual({}, self.agent.disks)
        (image_id,) = self.agent.images

        self._unshelve_server(server)

        self.assertEqual(image_id, self.disk_of(server)['clone'])
        self.assertNotIn(image_id, self.glance.images)


class QuiesceTest(SnapshotBase):
    def test_the_guest_is_frozen_around_the_seal_only(self):
        self.use_guest_agent()
        server = self.boot()
        self.snapshot(server)

        freeze, thaw = self.index('FREEZE'), self.index('THAW')
        seal = self.index('POST .*commits')
        poll = self.index('GET .*commits')
        self.assertTrue(freeze < seal < thaw < poll, self.agent.calls)

    def test_a_nova_compute_that_died_meanwhile_thaws_the_guest_at_its_start(
        self,
    ):
        self.use_guest_agent()
        server = self.boot()
        note = self.instance_folder(server) / frozen.NAME
        noted = []
        self.agent.on_call = lambda *call: noted.append(note.exists())
        self.snapshot(server)
        self.assertTrue(any(noted))
        self.assertFalse(note.exists())

        note.touch()
        self.agent.calls.clear()
        self.driver.init_host('compute1')
        self.assertEqual(['THAW'], self.agent.calls_of('FREEZE|THAW'))
        self.assertFalse(note.exists())

    def test_a_failed_seal_thaws_the_guest(self):
        self.use_guest_agent()
        server = self.boot()
        self.agent.fail('POST', 'commits', 507, 'NoSpace', count=99)
        self.assert_no_image(server)
        self.assertEqual('THAW', self.agent.calls_of('FREEZE|THAW')[-1])

    def test_a_freeze_that_fails_is_thawed_and_does_not_matter(self):
        self.use_guest_agent()
        self.quiesce_fails = True
        image = self.snapshot(self.boot())
        self.assertEqual('active', image['status'])
        self.assertEqual(
            ['FREEZE', 'THAW'], self.agent.calls_of('FREEZE|THAW')
        )

    @pytest.mark.expect_logs('cannot be quiesced')
    def test_unless_quiesce_is_required(self):
        self.use_guest_agent(os_require_quiesce='yes')
        self.quiesce_fails = True
        self.assert_no_image(self.boot())
        self.assertEqual([], self.agent.calls_of('POST .*commits'))

    @pytest.mark.expect_logs('cannot be quiesced')
    def test_quiesce_cannot_be_required_without_a_guest_agent(self):
        self.add_image(
            nova_harness.LAZY,
            stores='blob1',
            properties={'os_require_quiesce': 'yes'},
        )
        self.assert_no_image(self.boot())
        self.assertEqual([], self.agent.calls_of('POST .*commits'))


class ActionTest(SnapshotBase):
    """What ``openstack server event show`` tells."""

    def ended(self, server):
        actions = self.api.get_instance_actions(server['id'])
        (found,) = [
            action for action in actions if action['action'] == 'createImage'
        ]
        action = self.api.api_get(
            f'/servers/{server["id"]}/os-instance-actions/'
            f'{found["request_id"]}'
        ).body['instanceAction']
        (event,) = [
            event
            for event in action['events']
            if event['event'] == snapshot.EVENT
        ]
        return action['message'], event['result']

    def test_a_snapshot_that_failed_says_so(self):
        server = self.boot()
        self.agent.publish = 'failed'
        self.assert_no_image(server)
        self.assertEqual(('Error', 'Error'), self.ended(server))

    def test_one_that_did_not_does_not(self):
        server = self.boot()
        self.snapshot(server)
        self.assertEqual((None, 'Success'), self.ended(server))


class FailureTest(SnapshotBase):
    def test_an_image_that_never_becomes_active_is_removed(self):
        server = self.boot()
        self.activate = False
        self.assert_no_image(server)
        self.assertEqual(1, len(self.agent.calls_of('DELETE /v1/images/')))

    def test_a_failed_upload_leaves_nothing(self):
        server = self.boot()
        self.agent.publish = 'failed'
        self.assert_no_image(server)
        self.assertEqual(1, len(self.agent.calls_of('POST .*commits')))

    def test_an_upload_that_takes_too_long_is_given_up(self):
        self.flags(snapshot_timeout_seconds=1, group='lazyimage')
        server = self.boot()
        self.agent.publish = 'never'
        self.assert_no_image(server)

    def test_a_location_that_glance_refuses_drops_the_blob(self):
        server = self.boot()

        def refused(context, image_id, metadata, *args, **kwargs):
            raise exception.ImageNotAuthorized(image_id=image_id)

        self.glance.update = refused
        self.assert_no_image(server)

    def test_an_image_that_is_deleted_meanwhile_drops_the_blob(self):
        server = self.boot()

        def delete(verb, path, body):
            if verb == 'GET' and 'commits' in path:
                self.glance.images.clear()

        self.agent.on_call = delete
        self.assert_no_image(server)

    def test_without_the_agent_there_is_no_image(self):
        server = self.boot()
        self.patch('nova_lazyimage.snapshot.SEAL_SECONDS', 1)
        self.patch('nova_lazyimage.snapshot.drop', lambda *args: None)
        self.agent.away()
        self.assert_no_image(server)

    @contextlib.contextmanager
    def deaths(self, count):
        """The agent dies after each of the first seals."""
        seen = []

        def die(verb, path, body):
            if verb == 'GET' and 'commits' in path and len(seen) < count:
                commit_id = path.rsplit('/', 1)[1]
                if commit_id not in seen:
                    seen.append(commit_id)
                    for commit in self.agent.commits.values():
                        commit.update(
                            state='failed',
                            error={'code': 'Interrupted', 'message': 'died'},
                        )

        self.agent.on_call = die
        yield

    @pytest.mark.expect_logs('The agent died during a snapshot')
    def test_an_agent_that_dies_is_asked_again_with_a_quiesce(self):
        self.use_guest_agent()
        server = self.boot()
        with self.deaths(1):
            image = self.snapshot(server)

        self.assertEqual('active', image['status'])
        self.assertEqual(
            ['FREEZE', 'THAW', 'FREEZE', 'THAW'],
            self.agent.calls_of('FREEZE|THAW'),
        )
        self.assertEqual(2, len(self.agent.commits))

    @pytest.mark.expect_logs('The agent died during a snapshot')
    def test_but_only_once(self):
        server = self.boot()
        with self.deaths(9):
            self.assert_no_image(server)
        self.assertEqual(2, len(self.agent.commits))

    def test_a_lost_answer_to_the_seal_is_asked_again_before_the_thaw(self):
        self.use_guest_agent()
        server = self.boot()
        self.agent.fail('POST', 'commits', 0)
        image = self.snapshot(server)

        self.assertEqual('active', image['status'])
        calls = self.agent.calls_of('FREEZE|THAW|POST .*commits')
        self.assertEqual(4, len(calls))
        self.assertEqual(('FREEZE', 'THAW'), (calls[0], calls[-1]))
        self.assertEqual(1, len(self.agent.commits))

    def test_the_operator_may_allow_a_copy_instead(self):
        self.flags(snapshot_fallback='copy', group='lazyimage')
        server = self.boot()
        self._stop_server(server)
        self.agent.publish = 'failed'
        made = []

        def convert(source, target, in_format, out_format):
            made.append((source, in_format))
            with open(target, 'wb') as file:
                file.write(b'copied')

        self.patch('nova.virt.images.convert_image', convert)
        image = self.snapshot(server)

        self.assertEqual([(self.lazy_path(server), 'raw')], made)
        self.assertNotIn('location', image)
        self.assertEqual('active', image['status'])
