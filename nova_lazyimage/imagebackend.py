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
"""The image backend: a root disk that the agent serves.

``LazyBackend`` decides which class a disk has, ``LazyImage`` is a disk that is
a file below the agent's mount, outside the server's folder. Only ``disk`` and
``disk.rescue`` are lazy; kernel, ramdisk, config drive, ephemeral and swap
disks are Nova's own raw files.

What a server has is decided by its marker, else by the plain file in its
folder, and never by the agent's memory (contract 37).
"""

import contextlib
import json
import os
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import nova.conf
from nova import exception
from nova.i18n import _
from nova.virt.image import model as imgmodel
from nova.virt import images
from nova.virt.libvirt import imagebackend
from nova.virt.libvirt import utils as libvirt_utils
from oslo_log import log as logging
from oslo_utils import excutils

from nova_lazyimage import authorization
from nova_lazyimage import disks
from nova_lazyimage import exceptions
from nova_lazyimage import inspection
from nova_lazyimage import marker
from nova_lazyimage import snapshot

CONF = nova.conf.CONF
LOG = logging.getLogger(__name__)

LAZY_NAMES = ('disk', 'disk.rescue')
LAZY_TYPES = ('raw', 'flat', 'default')


class LazyImage(imagebackend.Image):
    """A lazily mirrored disk.

    Making one asks nobody: Nova does so for XML, in periodic tasks and after
    a server was deleted. If the image cannot be booted lazily and may be
    copied, the object turns into the plain raw disk it then is.

    :ivar published: location of the snapshot this object has made
    """

    SUPPORTS_CLONE = True
    SUPPORTS_LUKS = False

    def __init__(
        self,
        instance: Any = None,
        disk_name: str | None = None,
        path: str | None = None,
        disk_info_mapping: Any = None,
    ) -> None:
        parsed = disks.parse_path(path)
        if parsed is not None:
            if instance is not None and parsed[0] != instance.uuid:
                raise exception.InvalidDevicePath(path=path)
            disk_name = parsed[1]
        self.instance = instance
        self.disk_name = disk_name or 'disk'
        self.published: str | None = None
        self.quiesced: Callable[[], contextlib.AbstractContextManager[Any]] = (
            contextlib.nullcontext
        )
        self._plain: imagebackend.Flat | None = None
        self._snapshot_image_id: str | None = None
        super().__init__(
            path or disks.path_of(instance.uuid, self.disk_name),
            'file',
            'raw',
            is_block_dev=False,
            disk_info_mapping=disk_info_mapping,
        )

    def _can_fallocate(self) -> bool:
        return self._plain is not None and self._plain._can_fallocate()

    def exists(self) -> bool:
        """Whether the disk was made; only a marked one is asked for."""
        if self._plain is not None:
            return bool(self._plain.exists())
        if not marker.is_attached(self.instance, self.disk_name):
            return False
        return disks.get(self.instance.uuid, self.disk_name) is not None

    def get_disk_size(self, name: str) -> int:
        """Size of the disk; the base class would probe guests' bytes."""
        if self._plain is not None:
            return int(self._plain.get_disk_size(name))
        mirror = disks.need(self.instance.uuid, self.disk_name)
        return int(mirror['size_bytes'])

    def create_image(
        self,
        prepare_template: Any,
        base: str,
        size: int | None,
        safe: bool = False,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Make the disk, or see that one which was made is large enough."""
        if self._plain is None:
            if marker.is_attached(self.instance, self.disk_name):
                self._grow(size)
                return
            try:
                self._make(
                    kwargs['context'],
                    kwargs['image_id'],
                    kwargs.get('trusted_certs'),
                    size,
                )
                return
            except exceptions.ImageNotLazy as exc:
                self._fall_back(exc)
        assert self._plain is not None  # noqa: S101
        self._plain.create_image(
            prepare_template, base, size, safe, *args, **kwargs
        )
        self.driver_format = self._plain.driver_format

    def clone(self, context: Any, image_id_or_uri: str) -> None:
        """Make the disk of an image, without a copy."""
        if self._plain is not None:
            raise exceptions.ImageNotLazy(
                image_id=image_id_or_uri, reason=_('it is being copied')
            )
        self._make(context, image_id_or_uri, self.instance.trusted_certs, None)

    def resize_image(self, size: int) -> None:
        """Make the disk larger."""
        if self._plain is not None:
            self._plain.resize_image(size)
        else:
            self._grow(size)

    def flatten(self) -> None:
        """Nothing: a clone owns what it shares with its image."""

    def get_model(self, connection: Any) -> Any:
        """For what mounts images; raw, never probed."""
        return imgmodel.LocalFileImage(self.path, imgmodel.FORMAT_RAW)

    def snapshot_extract(self, target: str, out_format: str) -> None:
        """Copy the whole disk (``snapshot_fallback = copy`` only)."""
        images.convert_image(self.path, target, 'raw', out_format)

    def direct_snapshot(
        self,
        context: Any,
        snapshot_name: str,
        image_format: str,
        image_id: str,
        base_image_id: str,
    ) -> str:
        """COMMIT the disk as an image; returns its location."""
        self._snapshot_image_id = image_id
        try:
            if image_format != 'raw':
                raise exceptions.SnapshotFailed(
                    instance_uuid=self.instance.uuid,
                    reason=_(
                        '[libvirt] snapshot_image_format is "%s"; unset it'
                    )
                    % image_format,
                )
            self.published = snapshot.publish(
                context, self.instance, self.disk_name, image_id, self.quiesced
            )
        except (
            exceptions.AgentAway,
            exceptions.AgentRefused,
            exceptions.SnapshotFailed,
        ) as exc:
            if CONF.lazyimage.snapshot_fallback != 'copy':
                raise
            # Nova makes a snapshot of its own after this class.
            raise exception.ImageUnacceptable(
                image_id=image_id, reason=str(exc)
            ) from exc
        return self.published

    def cleanup_direct_snapshot(
        self,
        location: Any,
        also_destroy_volume: bool = False,
        ignore_errors: bool = False,
    ) -> None:
        """Drop the blob of a snapshot that failed; repeating is harmless."""
        self.published = None
        image_id = snapshot.blob_of(location) or self._snapshot_image_id
        if image_id and also_destroy_volume:
            snapshot.drop(image_id, ignore_errors)

    def _make(
        self,
        context: Any,
        image_id: str,
        trusted_certs: Any,
        size: int | None,
    ) -> None:
        instance, disk = self.instance, self.disk_name
        image = authorization.lazy_image(context, image_id, trusted_certs)
        disks.settle_tombstone(instance)
        marker.set_disk(instance, disk, marker.ATTACHING, image_id=image_id)
        try:
            mirror = disks.attach_clone(
                instance.uuid, disk, image_id, instance.project_id
            )
            inspection.check_head(image, instance.uuid, disk)
            size_bytes = int(mirror['size_bytes'])
            self.verify_base_size(self.path, size, base_size=size_bytes)
            if size and size > size_bytes:
                size_bytes = size
                disks.grow(instance.uuid, disk, size)
            marker.set_disk(
                instance,
                disk,
                marker.ATTACHED,
                image_id=image_id,
                size_bytes=size_bytes,
            )
        except BaseException:
            with excutils.save_and_reraise_exception():
                self._discard()
        LOG.info(
            'Disk %(disk)s is a lazy clone of image %(image)s',
            {'disk': disk, 'image': image_id},
            instance=instance,
        )

    def _discard(self) -> None:
        """Undo what was made; what cannot be undone now stays marked."""
        try:
            disks.release(self.instance.uuid, self.disk_name)
            marker.remove_disk(self.instance, self.disk_name)
        except Exception as exc:
            LOG.warning(
                'Cannot release disk %(disk)s, which was not finished; it is '
                'released when it is made again or its server deleted: '
                '%(error)s',
                {'disk': self.disk_name, 'error': exc},
                instance=self.instance,
            )

    def _grow(self, size: int | None) -> None:
        mirror = disks.need(self.instance.uuid, self.disk_name)
        if not size or size <= int(mirror['size_bytes']):
            return
        disks.grow(self.instance.uuid, self.disk_name, size)
        entry = marker.read(self.instance)[self.disk_name]
        marker.set_disk(
            self.instance,
            self.disk_name,
            entry.pop('state'),
            **{**entry, 'size_bytes': size},
        )

    def _fall_back(self, exc: exceptions.ImageNotLazy) -> None:
        if CONF.lazyimage.fallback_fetch != 'copy':
            raise exc
        LOG.info(
            'The image of disk %(disk)s is copied: %(reason)s',
            {'disk': self.disk_name, 'reason': exc},
            instance=self.instance,
        )
        plain = imagebackend.Flat(
            instance=self.instance,
            disk_name=self.disk_name,
            disk_info_mapping=self.disk_info_mapping,
        )
        self._plain = plain
        self.path = plain.path
        self.preallocate = plain.preallocate
        self.driver_io = plain.driver_io
        self.disk_info_path = plain.disk_info_path


class LazyBackend(imagebackend.Backend):
    """Which class a disk has."""

    def __init__(self, use_cow: bool) -> None:
        super().__init__(use_cow)
        self._snapshots: dict[str, Snapshotting] = {}

    def backend(self, image_type: str | None = None) -> Any:
        """The class of root disks: what Nova asks without a name."""
        if (image_type or CONF.libvirt.images_type) in LAZY_TYPES:
            return LazyImage
        return super().backend(image_type)

    def by_name(
        self,
        instance: Any,
        name: str,
        image_type: str | None = None,
        disk_info_mapping: Any = None,
    ) -> Any:
        """A disk by its name (absolute paths are names as well)."""
        cls = self.backend(image_type)
        if cls is LazyImage:
            cls = imagebackend.Flat
            if name in LAZY_NAMES:
                cls = class_of(instance, name)
        return cls(
            instance=instance,
            disk_name=name,
            disk_info_mapping=disk_info_mapping,
        )

    def by_libvirt_path(
        self, instance: Any, path: str, image_type: str | None = None
    ) -> Any:
        """A disk by what the domain says."""
        if disks.parse_path(path) is None:
            cls = super().backend(image_type)
            return cls(instance=instance, path=path)
        image = LazyImage(instance=instance, path=path)
        snapshotting = self._snapshots.get(instance.uuid)
        if snapshotting is not None:
            snapshotting.image = image
            image.quiesced = snapshotting.quiesced
        return image

    @contextlib.contextmanager
    def snapshotting(
        self,
        instance: Any,
        quiesced: Callable[[], contextlib.AbstractContextManager[Any]],
    ) -> Iterator['Snapshotting']:
        """Meanwhile the server's disk is sealed within ``quiesced()``.

        Nova makes the disk's object in the middle of its own ``snapshot``;
        it runs one a server at a time.
        """
        found = Snapshotting(quiesced)
        self._snapshots[instance.uuid] = found
        try:
            yield found
        finally:
            self._snapshots.pop(instance.uuid, None)


class Snapshotting:
    """A snapshot under way.

    :ivar image: the disk, once Nova has asked for it
    """

    def __init__(
        self, quiesced: Callable[[], contextlib.AbstractContextManager[Any]]
    ) -> None:
        self.quiesced = quiesced
        self.image: LazyImage | None = None


def class_of(instance: Any, name: str) -> Any:
    """The class of a root or rescue disk (contract 37)."""
    if name in marker.read(instance):
        return LazyImage
    folder = libvirt_utils.get_instance_path(instance)
    path = os.path.join(folder, name)
    # A rescue disk is deleted without its line in disk.info.
    known = _recorded_format(folder, path)
    if os.path.exists(path) or (known and name == 'disk'):
        return imagebackend.Qcow2 if known == 'qcow2' else imagebackend.Flat
    return LazyImage


def _recorded_format(folder: str, path: str) -> str | None:
    try:
        with open(os.path.join(folder, 'disk.info'), encoding='utf-8') as file:
            found = json.loads(file.read() or '{}').get(path)
    except FileNotFoundError:
        return None
    except (ValueError, AttributeError) as exc:
        raise exception.InvalidDiskInfo(reason=str(exc)) from exc
    return None if found is None else str(found)
