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
"""The compute driver: Nova's libvirt driver with lazily mirrored root disks.

``compute_driver = lazyimage.LazyLibvirtDriver``. Nothing of Nova is copied:
each overridden method does its part and calls Nova's. A test compares their
arguments with the installed Nova's.
"""

from typing import Any

import nova.conf
from nova.virt.libvirt import driver as libvirt_driver
from oslo_log import log as logging

from nova_lazyimage import configuration
from nova_lazyimage import frozen
from nova_lazyimage import imagebackend
from nova_lazyimage import lifecycle
from nova_lazyimage import refusals
from nova_lazyimage import snapshot
from nova_lazyimage.conf import nova as options

CONF = nova.conf.CONF
LOG = logging.getLogger(__name__)

TRAIT = 'CUSTOM_LAZYIMAGE'

options.register_opts(CONF)


class LazyLibvirtDriver(
    snapshot.SnapshotMixin,
    lifecycle.LifecycleMixin,
    refusals.RefusalsMixin,
    libvirt_driver.LibvirtDriver,
):
    """Servers that boot before their image is copied."""

    def __init__(self, virtapi: Any, read_only: bool = False) -> None:
        super().__init__(virtapi, read_only)
        self.image_backend = imagebackend.LazyBackend(CONF.use_cow_images)

    def init_host(self, host: str) -> None:
        """Refuse to serve with what cannot work."""
        configuration.check_options()
        configuration.check_agent(host)
        super().init_host(host)
        frozen.thaw_left(self._host)

    def update_provider_tree(
        self, provider_tree: Any, nodename: str, allocations: Any = None
    ) -> None:
        """Let flavors and images ask for this kind of host."""
        super().update_provider_tree(
            provider_tree, nodename, allocations=allocations
        )
        provider_tree.add_traits(nodename, TRAIT)
