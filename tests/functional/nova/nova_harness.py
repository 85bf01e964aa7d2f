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
"""Nova in one process: API, conductor, placement, fakelibvirt, our driver.

Nova's base class replaces the methods that make disks; here they are Nova's
own again, and only what would call programs or Glance is replaced.
"""

import contextlib
import pathlib
import sys

import fixtures
import nova.conf
from nova import context as nova_context
from nova.tests.functional.libvirt import base
from nova.virt.libvirt import driver as libvirt_driver
from nova.virt.libvirt import imagebackend as nova_imagebackend
from oslo_utils.fixture import uuidsentinel as uuids

import nova_agent_double
import nova_lazyimage.driver  # noqa: F401  (registers [lazyimage])
import nova_lazyimage_hook

CONF = nova.conf.CONF

BASE = libvirt_driver.LibvirtDriver
CREATE_IMAGE = BASE._create_image
CREATE_EPHEMERAL = BASE._create_ephemeral
BACKEND = nova_imagebackend.Backend.backend

ROOM = {'total': 128 * 2**30, 'used': 44 * 2**30, 'free': 84 * 2**30}

LAZY = uuids.lazy_image
PLAIN = uuids.plain_image


class LazyBase(base.ServersTestBase):
    """One compute host whose agent is the double."""

    ADMIN_API = True
    CAST_AS_CALL = False
    api_major_version = 'v2.1'
    microversion = 'latest'

    def setUp(self):
        self.folder = self.useFixture(fixtures.TempDir()).path
        self.agent = nova_agent_double.AgentDouble(self.folder)
        self.agent.start()
        self.addCleanup(self.agent.stop)
        # A wheel of Nova has it beside the environment's bin/.
        paste = pathlib.Path(sys.prefix, 'etc/nova/api-paste.ini')
        self.flags(api_paste_config=str(paste), group='wsgi')
        super().setUp()
        self._restore()
        self.flags(use_cow_images=False, force_raw_images=True)
        self.flags(
            images_type='raw',
            snapshots_directory=self.folder,
            group='libvirt',
        )
        self.flags(
            agent_socket=self.agent.socket,
            mount_root=self.agent.mount_root,
            released_directory=str(self.agent.released),
            agent_timeout_seconds=2,
            agent_start_timeout_seconds=0,
            snapshot_timeout_seconds=5,
            image_active_timeout_seconds=2,
            group='lazyimage',
        )
        self.flags(send_service_user_token=True, group='service_user')
        self.add_image(LAZY, stores='blob1')
        self.add_image(PLAIN, stores='local')
        self.agent.add_blob(LAZY)
        self.fetched = None
        self.downloads = []
        self.denied = None
        self.useFixture(
            fixtures.MonkeyPatch(
                'nova.image.glance.GlanceClientWrapper.call', self._glance_call
            )
        )
        self.start_compute(hostname='compute1')

    def __delattr__(self, name):
        # Nova's tearDown has deleted what pytest put here.
        with contextlib.suppress(AttributeError):
            super().__delattr__(name)

    def _setup_compute_service(self):
        nova_lazyimage_hook.install()
        self.flags(compute_driver='lazyimage.LazyLibvirtDriver')

    def _restore(self):
        """What Nova's base class took away."""
        for name, value in (
            ('LibvirtDriver._create_image', CREATE_IMAGE),
            ('imagebackend.Backend.backend', BACKEND),
        ):
            module = 'driver.' if name.startswith('Libvirt') else ''
            self.useFixture(
                fixtures.MonkeyPatch(
                    f'nova.virt.libvirt.{module}{name}', value
                )
            )
        self.useFixture(
            fixtures.MonkeyPatch(
                'nova.virt.libvirt.utils.get_fs_info', lambda path: ROOM
            )
        )
        # Plain disks are files, but no program looks at them.
        self.useFixture(
            fixtures.MonkeyPatch(
                'nova.virt.libvirt.utils.fetch_image', self._fetch_image
            )
        )
        self.useFixture(
            fixtures.MonkeyPatch(
                'nova.virt.libvirt.imagebackend.Flat._get_driver_format',
                lambda flat: 'raw',
            )
        )
        self.patch('nova.privsep.path.utime', lambda path: None)
        for name in ('resize_image', 'get_disk_size'):
            self.useFixture(
                fixtures.MonkeyPatch(
                    f'nova.virt.libvirt.imagebackend.Flat.{name}',
                    lambda flat, value: 0,
                )
            )

    def _fetch_image(self, context, target, image_id, trusted_certs=None):
        self.fetched = image_id
        pathlib.Path(target).write_bytes(b'copied')

    def _glance_call(self, wrapper, context, version, method, **kwargs):
        self.downloads.append(kwargs)
        if self.denied is not None:
            raise self.denied

        class Response:
            def close(self):
                pass

        return Response(), iter([b'\0'])

    @property
    def driver(self):
        return self.computes['compute1'].driver

    @property
    def conn(self):
        return self.driver._host.get_connection()

    def add_image(self, image_id, stores, **more):
        image = {
            'id': image_id,
            'name': 'image',
            'status': 'active',
            'container_format': 'bare',
            'disk_format': 'raw',
            'size': 8 * 1024**2,
            'min_ram': 0,
            'min_disk': 0,
            'created_at': self.glance.timestamp,
            'updated_at': self.glance.timestamp,
            'deleted_at': None,
            'deleted': False,
            'visibility': 'public',
            'tags': [],
            'stores': stores,
            'properties': {},
        }
        image.update(more)
        self.glance.images[image_id] = image

    def instance_folder(self, server):
        return pathlib.Path(CONF.instances_path, server['id'])

    def boot(
        self, image=LAZY, expected_state='ACTIVE', flavor_id=None, **more
    ):
        body = self._build_server(
            image_uuid=image, networks='none', flavor_id=flavor_id
        )
        body.update(more)
        server = self.api.post_server({'server': body})
        return self._wait_for_state_change(server, expected_state)

    def boot_fails(self, **kwargs):
        """The server in its last state: nothing runs for it any more."""
        server = self.boot(expected_state='ERROR', **kwargs)
        self.wait_for_no_task(server)
        return self.api.get_server(server['id'])

    def wait_for_failed(self, server, action, event):
        """A request of the user has failed, and said so."""
        self._wait_for_action_fail_completion(server, action, event)
        self.wait_for_no_task(server)

    def xml(self, server):
        return self.conn.lookupByUUIDString(server['id']).XMLDesc(0)

    def fault(self, server):
        server = self.api.get_server(server['id'])
        return server.get('fault', {}).get('message', '')

    def patch(self, name, value):
        self.useFixture(fixtures.MonkeyPatch(name, value))

    @property
    def admin_context(self):
        return nova_context.get_admin_context()

    @staticmethod
    def in_host():
        """Whether the image backend is what asks."""
        frame = sys._getframe()
        while frame is not None:
            if frame.f_globals.get('__name__') == (
                'nova_lazyimage.authorization'
            ):
                return True
            frame = frame.f_back
        return False

    def lazy_path(self, server):
        return f'{self.agent.mount_root}/{server["id"]}/disk'

    def disk_of(self, server):
        return self.agent.disks[server['id'], 'disk']

    def disk(self):
        return self.disk_of(self.server)

    def index(self, pattern):
        return self.agent.calls.index(self.agent.calls_of(pattern)[0])

    def state(self, server):
        return self.api.get_server(server['id'])['status']

    def wait_for_no_task(self, server):
        self._wait_for_server_parameter(
            server, {'OS-EXT-STS:task_state': None}
        )

    def assert_nothing_left(self, server):
        self.assertEqual({}, self.agent.disks)
        self.assertFalse(self.instance_folder(server).exists())
        self.assertEqual([], list(self.agent.released.iterdir()))
