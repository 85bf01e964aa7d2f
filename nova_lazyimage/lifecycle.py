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
"""Start, stop, delete and account for servers with lazy disks.

A start makes sure that the agent serves each lazy disk of the domain and lets
it fetch; a stop first ends its waiting reads, since a QEMU that waits for one
does not even die of SIGKILL (contract 40). A deletion gives the disks up. The
periodic audit asks the agent for sizes, once for all servers, and never the
mount: a mount without its agent may hang or answer ENOTCONN, and the audit
runs under the resource tracker's lock.
"""

import contextlib
import copy
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

from lxml import etree
import nova.conf
from nova.i18n import _
from nova.image import glance
from nova.virt.libvirt import utils as libvirt_utils
from oslo_log import log as logging
from oslo_utils import units

from nova_lazyimage import authorization
from nova_lazyimage import disks
from nova_lazyimage import exceptions
from nova_lazyimage import marker
from nova_lazyimage.agent import client

CONF = nova.conf.CONF
LOG = logging.getLogger(__name__)

RESCUE = 'disk.rescue'
SIZES_SECONDS = 10.0


class Sizes:
    """What the agent says of all disks, kept for the length of an audit."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._until = 0.0
        self._mirrors: dict[tuple[str, str], tuple[int, int]] = {}

    def of(self, instance_uuid: str, disk: str) -> tuple[int, int]:
        """Size and locally held bytes of a disk.

        With the agent away the marker knows the size, and nothing is known
        to be local: the audit then errs on the side of too little room.
        """
        with self._mutex:
            if time.monotonic() >= self._until:
                self._read()
            found = self._mirrors.get((instance_uuid, disk))
        if found is not None:
            return found
        path = os.path.join(CONF.instances_path, instance_uuid, marker.NAME)
        try:
            entry = marker.read_file(path).get(disk, {})
        except exceptions.MarkerDamaged:
            entry = {}
        return int(entry.get('size_bytes', 0)), 0

    def _read(self) -> None:
        try:
            self._mirrors = {
                (m['instance'], m['disk']): (
                    int(m['size_bytes']),
                    int(m['local_bytes']),
                )
                for m in disks.agent(disks.SHORT_SECONDS).mirrors()
            }
        except client.AgentError as exc:
            LOG.warning('Sizes of lazy disks are not known now: %s', exc)
            self._mirrors = {}
        self._until = time.monotonic() + SIZES_SECONDS


def lazy_disks_of(xml: Any) -> list[tuple[str, str]]:
    """Server and name of each lazy disk of a domain."""
    if isinstance(xml, str):
        xml = xml.encode()
    # Written by Nova or libvirt for this very domain.
    root = etree.fromstring(xml)
    found = []
    for source in root.iterfind('./devices/disk/source'):
        parsed = disks.parse_path(source.get('file'))
        if parsed is not None:
            found.append(parsed)
    return found


def ensure_served(instance_uuid: str, disk: str, state: str | None) -> None:
    """A disk that a server is about to start from.

    :param state: what its marker says
    :raises DiskNotServed: it is not there, or was never inspected
    """
    if state == marker.ATTACHING:
        raise exceptions.DiskNotServed(
            disk=disk,
            instance_uuid=instance_uuid,
            reason=_('it was not made to the end; rebuild the server'),
        )
    disks.need(instance_uuid, disk)


class LifecycleMixin:
    """What ``LibvirtDriver`` does to servers, for lazy disks."""

    def __init__(self, virtapi: Any, read_only: bool = False) -> None:
        super().__init__(virtapi, read_only)  # type: ignore[call-arg]
        self._sizes = Sizes()
        # Servers in _cleanup(), which decides about their disks itself.
        self._cleaning: set[str] = set()

    # Start and stop

    def _ensure_disks(self, instance: Any) -> None:
        """Every lazy disk of a server is served, or nothing is touched."""
        for disk, entry in marker.read(instance).items():
            if disk != RESCUE:
                ensure_served(instance.uuid, disk, entry['state'])

    def _create_guest(
        self: Any,
        context: Any,
        xml: str,
        instance: Any,
        power_on: bool = True,
        pause: bool = False,
        post_xml_callback: Any = None,
    ) -> Any:
        """Every start of a domain but those of an existing one."""
        lazy = lazy_disks_of(xml)
        marked = marker.read(instance) if lazy else {}
        for instance_uuid, disk in lazy:
            state = marked.get(disk, {}).get('state')
            ensure_served(instance_uuid, disk, state)
            disks.allow_misses(instance_uuid, disk)
        return super()._create_guest(
            context,
            xml,
            instance,
            power_on=power_on,
            pause=pause,
            post_xml_callback=post_xml_callback,
        )

    def _soft_reboot(self: Any, instance: Any) -> Any:
        """The domain is stopped by its guest and launched again."""
        self._ensure_disks(instance)
        return super()._soft_reboot(instance)

    def _hard_reboot(
        self: Any,
        context: Any,
        instance: Any,
        network_info: Any,
        share_info: Any,
        block_device_info: Any = None,
        accel_info: Any = None,
    ) -> None:
        """Also every start of a stopped server."""
        self._ensure_disks(instance)
        super()._hard_reboot(
            context,
            instance,
            network_info,
            share_info,
            block_device_info=block_device_info,
            accel_info=accel_info,
        )

    def _destroy(self: Any, instance: Any) -> None:
        """Kill the domain; its waiting reads end first."""
        try:
            lazy = list(marker.read(instance))
        except exceptions.MarkerDamaged as exc:
            LOG.warning('%s', exc, instance=instance)
            lazy = ['disk']
        for disk in lazy:
            disks.end_misses(instance, disk)
        super()._destroy(instance)

    # Rescue

    def rescue(
        self: Any,
        context: Any,
        instance: Any,
        network_info: Any,
        image_meta: Any,
        rescue_password: Any,
        block_device_info: Any,
        share_info: Any,
    ) -> None:
        """Start from a second disk; one that an earlier rescue left goes."""
        self._ensure_disks(instance)
        self._release_rescue(instance)
        super().rescue(
            context,
            instance,
            network_info,
            image_meta,
            rescue_password,
            block_device_info,
            share_info,
        )

    def unrescue(self: Any, context: Any, instance: Any) -> None:
        """Start from the root disk again."""
        self._ensure_disks(instance)
        super().unrescue(context, instance)
        try:
            self._release_rescue(instance)
        except (exceptions.AgentAway, exceptions.AgentRefused) as exc:
            LOG.warning(
                'The rescue disk is not released yet; the next rescue, or '
                'the deletion of the server, does it: %s',
                exc,
                instance=instance,
            )

    @staticmethod
    def _release_rescue(instance: Any) -> None:
        if RESCUE in marker.read(instance):
            disks.release(instance.uuid, RESCUE)
            marker.remove_disk(instance, RESCUE)

    # Delete

    @contextlib.contextmanager
    def _in_cleanup(self, instance: Any) -> Iterator[None]:
        self._cleaning.add(instance.uuid)
        try:
            yield
        finally:
            self._cleaning.discard(instance.uuid)

    def _cleanup(
        self: Any,
        context: Any,
        instance: Any,
        network_info: Any,
        block_device_info: Any = None,
        destroy_vifs: bool = True,
        cleanup_instance_dir: bool = False,
        cleanup_instance_disks: bool = False,
        destroy_secrets: bool = True,
    ) -> None:
        """Give the disks up only if Nova says so.

        It cleans up after moves and failed starts too, where the server
        keeps its disks.
        """
        with self._in_cleanup(instance):
            if cleanup_instance_disks:
                disks.release_all(instance)
            super()._cleanup(
                context,
                instance,
                network_info,
                block_device_info=block_device_info,
                destroy_vifs=destroy_vifs,
                cleanup_instance_dir=cleanup_instance_dir,
                cleanup_instance_disks=cleanup_instance_disks,
                destroy_secrets=destroy_secrets,
            )

    def delete_instance_files(self: Any, instance: Any) -> Any:
        """Nova's periodic tasks come here without ``_cleanup``."""
        if instance.uuid not in self._cleaning:
            disks.release_all(instance)
        return super().delete_instance_files(instance)

    # What Nova believes to be in the server's folder

    def _create_images_and_backing(
        self: Any,
        context: Any,
        instance: Any,
        instance_dir: str,
        disk_info: Any,
        fallback_from_host: Any = None,
    ) -> None:
        """Without the lazy disks: Nova would make empty files of them."""
        super()._create_images_and_backing(
            context,
            instance,
            instance_dir,
            _plain_only(disk_info),
            fallback_from_host=fallback_from_host,
        )

    def _get_instance_disk_info(
        self: Any, instance: Any, block_device_info: Any
    ) -> Any:
        """Without the lazy disks: nothing is copied of them."""
        return _plain_only(
            super()._get_instance_disk_info(instance, block_device_info)
        )

    def _get_instance_disk_info_from_config(
        self: Any, guest_config: Any, block_device_info: Any
    ) -> Any:
        """Lazy disks by the agent's figures; the mount is not touched."""
        config = copy.copy(guest_config)
        config.devices, lazy = [], []
        for device in guest_config.devices:
            parsed = disks.parse_path(getattr(device, 'source_path', None))
            if parsed is None:
                config.devices.append(device)
            else:
                lazy.append((device, parsed))
        found = super()._get_instance_disk_info_from_config(
            config, block_device_info
        )
        for device, parsed in lazy:
            size_bytes, local_bytes = self._sizes.of(*parsed)
            found.append(
                {
                    'type': 'raw',
                    'path': device.source_path,
                    'virt_disk_size': size_bytes,
                    'backing_file': '',
                    'disk_size': local_bytes,
                    'over_committed_disk_size': max(
                        0, size_bytes - local_bytes
                    ),
                }
            )
        return found

    @staticmethod
    def _get_local_gb_info() -> dict[str, float]:
        """Room where the disks grow: the agent's file system."""
        path = CONF.lazyimage.released_directory
        try:
            info = libvirt_utils.get_fs_info(path)
        except OSError as exc:
            LOG.warning(
                'Room of the agent is not known, and that of '
                '"%(instances)s" is reported: %(error)s',
                {'instances': CONF.instances_path, 'error': exc},
            )
            info = libvirt_utils.get_fs_info(CONF.instances_path)
        return {key: value / units.Gi for key, value in info.items()}

    def cache_image(self: Any, context: Any, image_id: str) -> Any:
        """Nothing to copy for images that are booted lazily."""
        if authorization.is_lazy(glance.API().get(context, image_id)):
            LOG.info('Image %s is booted lazily and not copied', image_id)
            return False
        return super().cache_image(context, image_id)


def _plain_only(disk_info: Any) -> Any:
    return [
        info
        for info in disk_info or []
        if disks.parse_path(info['path']) is None
    ]
