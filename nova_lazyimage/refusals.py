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
"""What a server with a lazy disk cannot do yet, refused before it begins.

Resize, migration and evacuation need the disk's writer to move between hosts.
Until they exist a server must neither lose what it wrote nor start from other
bytes: each is refused where nothing was touched yet, on the host that knows
(the source, by the server's marker; the destination, for every server that
would need a local root disk here). Servers that boot from a volume, and plain
ones leaving, go Nova's way.
"""

from typing import Any

import nova.conf
from nova import exception
from nova.i18n import _
from nova.virt.libvirt import utils as libvirt_utils
from oslo_log import log as logging
from oslo_serialization import jsonutils

from nova_lazyimage import imagebackend
from nova_lazyimage import marker

CONF = nova.conf.CONF
LOG = logging.getLogger(__name__)


class RefusalsMixin:
    """Moves of servers."""

    def migrate_disk_and_power_off(
        self: Any,
        context: Any,
        instance: Any,
        dest: Any,
        flavor: Any,
        network_info: Any,
        block_device_info: Any = None,
        timeout: int = 0,
        retry_interval: int = 0,
    ) -> Any:
        """Resize and cold migration, the same host included."""
        if marker.read(instance):
            raise exception.InstanceFaultRollback(
                exception.ResizeError(
                    reason=_(
                        'a server with a lazily mirrored root disk cannot '
                        'be resized or migrated yet; snapshot it and boot a '
                        'server of the wanted flavor from the snapshot'
                    )
                )
            )
        return super().migrate_disk_and_power_off(
            context,
            instance,
            dest,
            flavor,
            network_info,
            block_device_info,
            timeout,
            retry_interval,
        )

    def finish_migration(
        self: Any,
        context: Any,
        migration: Any,
        instance: Any,
        disk_info: Any,
        network_info: Any,
        image_meta: Any,
        resize_instance: Any,
        allocations: Any,
        block_device_info: Any = None,
        power_on: bool = True,
        **kwargs: Any,
    ) -> Any:
        """A root disk that did not arrive is never made from the image."""
        if instance.image_ref and not self._root_arrived(instance, disk_info):
            raise exception.ResizeError(
                reason=_(
                    'the root disk of the server did not arrive on host '
                    '%s; revert, or confirm nothing and migrate it back'
                )
                % CONF.host
            )
        return super().finish_migration(
            context,
            migration,
            instance,
            disk_info,
            network_info,
            image_meta,
            resize_instance,
            allocations,
            block_device_info=block_device_info,
            power_on=power_on,
            **kwargs,
        )

    @staticmethod
    def _root_arrived(instance: Any, disk_info: Any) -> bool:
        if marker.read(instance):
            return False
        if imagebackend.class_of(instance, 'disk') is imagebackend.LazyImage:
            return False
        folder = libvirt_utils.get_instance_path(instance)
        wanted = f'{folder}/disk'
        return any(
            info.get('path') == wanted for info in jsonutils.loads(disk_info)
        )

    def check_can_live_migrate_destination(
        self: Any,
        context: Any,
        instance: Any,
        src_compute_info: Any,
        dst_compute_info: Any,
        block_migration: bool = False,
        disk_over_commit: bool = False,
    ) -> Any:
        """No server comes here with a root disk of its own."""
        if instance.image_ref:
            raise exception.MigrationPreCheckError(
                reason=_(
                    'host %s mirrors root disks lazily and takes no server '
                    'by live migration yet, except those that boot from a '
                    'volume'
                )
                % CONF.host
            )
        return super().check_can_live_migrate_destination(
            context,
            instance,
            src_compute_info,
            dst_compute_info,
            block_migration,
            disk_over_commit,
        )

    def check_can_live_migrate_source(
        self: Any,
        context: Any,
        instance: Any,
        dest_check_data: Any,
        block_device_info: Any = None,
    ) -> Any:
        """No server leaves with a lazy disk."""
        if marker.read(instance):
            raise exception.MigrationPreCheckError(
                reason=_(
                    'a server with a lazily mirrored root disk cannot be '
                    'migrated live yet'
                )
            )
        return super().check_can_live_migrate_source(
            context, instance, dest_check_data, block_device_info
        )

    def instance_on_disk(self: Any, instance: Any) -> Any:
        """Nova asks this for an evacuation only, before anything else."""
        self._refuse_evacuation(instance)
        return super().instance_on_disk(instance)

    def rebuild(
        self: Any,
        context: Any,
        instance: Any,
        image_meta: Any,
        injected_files: Any,
        admin_password: Any,
        allocations: Any,
        bdms: Any,
        detach_block_devices: Any,
        attach_block_devices: Any,
        network_info: Any = None,
        evacuate: bool = False,
        block_device_info: Any = None,
        preserve_ephemeral: bool = False,
        accel_uuids: Any = None,
        reimage_boot_volume: bool = False,
    ) -> Any:
        """Nova's own way, but not for an evacuation."""
        if evacuate:
            self._refuse_evacuation(instance)
        return super().rebuild(
            context,
            instance,
            image_meta,
            injected_files,
            admin_password,
            allocations,
            bdms,
            detach_block_devices,
            attach_block_devices,
            network_info=network_info,
            evacuate=evacuate,
            block_device_info=block_device_info,
            preserve_ephemeral=preserve_ephemeral,
            accel_uuids=accel_uuids,
            reimage_boot_volume=reimage_boot_volume,
        )

    @staticmethod
    def _refuse_evacuation(instance: Any) -> None:
        if instance.image_ref and instance.host != CONF.host:
            raise exception.InstanceFaultRollback(
                exception.InstanceEvacuateNotSupported(
                    _(
                        'a server cannot be evacuated to host %s, which '
                        'mirrors root disks lazily: it would start from its '
                        'image without what it wrote'
                    )
                    % CONF.host
                )
            )
