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
"""What is not built yet is refused before anything is touched."""

import nova_harness


class RefusalTest(nova_harness.LazyBase):
    def setUp(self):
        super().setUp()
        self.flags(allow_resize_to_same_host=True)
        self.server = self.boot()
        self.domain = self.conn.lookupByUUIDString(self.server['id']).ID()

    def assert_untouched(self):
        self._wait_for_state_change(self.server, 'ACTIVE')
        domain = self.conn.lookupByUUIDString(self.server['id'])
        self.assertEqual(self.domain, domain.ID())
        self.assertIn(self.lazy_path(self.server), self.xml(self.server))
        self.assertEqual([(self.server['id'], 'disk')], list(self.agent.disks))
        self.assertTrue(self.disk()['misses'])

    def test_a_resize_on_the_same_host(self):
        flavor = self._create_flavor(disk=20)
        self.api.post_server_action(
            self.server['id'], {'resize': {'flavorRef': flavor}}
        )
        self._wait_for_migration_status(self.server, ['error'])
        self._wait_for_assert(
            lambda: self.assertIn('cannot be resized', self.event_details())
        )
        self.assert_untouched()

    def start_compute_of_another_agent(self):
        self.agent.host = 'compute2'
        self.start_compute(hostname='compute2')

    def event_details(self):
        events = self.api.get_instance_actions(self.server['id'])
        details = self.api.api_get(
            f'/servers/{self.server["id"]}/os-instance-actions/'
            f'{events[0]["request_id"]}'
        ).body['instanceAction']['events']
        return str(details) + self.fault(self.server)

    def test_a_live_migration(self):
        # The destination refuses in the scheduler's place: one host.
        self.start_compute_of_another_agent()
        self.api.post_server_action(
            self.server['id'],
            {'os-migrateLive': {'host': None, 'block_migration': 'auto'}},
        )
        self._wait_for_migration_status(self.server, ['error', 'failed'])
        self.assert_untouched()

    def test_an_evacuation_to_a_lazy_host(self):
        self.start_compute_of_another_agent()
        self.computes['compute1'].stop()
        service = self.admin_api.get_services(
            binary='nova-compute', host='compute1'
        )[0]
        self.admin_api.put_service_force_down(service['id'], True)
        before = list(self.agent.calls)
        self.api.post_server_action(
            self.server['id'], {'evacuate': {'host': 'compute2'}}
        )
        self._wait_for_migration_status(self.server, ['failed'])
        self.assertEqual(
            [],
            self.agent.calls_of('PUT')[
                len([c for c in before if c.startswith('PUT')]) :
            ],
        )
        self.wait_for_no_task(self.server)
        self.assertEqual('ACTIVE', self.state(self.server))
