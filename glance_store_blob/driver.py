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
"""Glance's door: the store type ``blob``.

An image uploaded here becomes a blob whose id is the image's id, so that
Nova's door finds it without being shown a location. A snapshot makes its blob
elsewhere (the agent) and gives Glance the location only.

Promises:

- Configuring connects to nothing: glance-api starts while the conductor is
  away.
- ``add`` is all or nothing. What the reader raises goes up as it is.
- A location is used only if the catalog says that it minted it (its MAC) and
  for this repository. That does not prove ownership, so ``delete`` also asks
  that the context is an administrator's or of the blob's project.
- Once Glance has read a snapshot's blob, it is no longer provisional: from
  the size on, since that is what Glance asks for before it keeps a location.
- One repository backs one store id. The URLs are compared at start, where the
  second store stops glance-api; the uuids when they are known.

Threads: one instance serves them all (``DRIVER_REUSABLE``).
"""

from collections.abc import Iterator
from typing import Any

import glance_store
import glance_store.driver
import glance_store.location
from glance_store import capabilities
from glance_store import exceptions
from oslo_log import log as logging
from oslo_utils import units

from glance_store_blob import conf
from glance_store_blob import connection
from glance_store_blob import errors
from glance_store_blob import sizes
from glance_store_blob import upload
from glance_store_blob.location import SCHEME
from glance_store_blob.location import StoreLocation
from lazyblob import exceptions as lazy
from lazyblob import repository
from lazyblob.catalog import api

LOG = logging.getLogger(__name__)

__all__ = ['Store', 'StoreLocation']


class Store(glance_store.driver.Store):
    """A store of images in a repository of lazyblob."""

    _CAPABILITIES = (
        capabilities.BitMasks.READ_RANDOM
        | capabilities.BitMasks.WRITE_ACCESS
        | capabilities.BitMasks.DRIVER_REUSABLE
    )
    OPTIONS = conf.OPTIONS
    EXAMPLE_URL = f'{SCHEME}://<repository uuid>/<blob>/<version>?mac=<mac>'
    READ_CHUNKSIZE = units.Mi
    WRITE_CHUNKSIZE = units.Mi

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._connection: connection.Connection | None = None
        self._sizes = sizes.RecentSizes()
        self._chunk_size_bytes = conf.CHUNK_SIZE_BYTES_DEFAULT
        self._threads: int | None = None

    # Configuration

    def get_schemes(self) -> tuple[str, ...]:
        """The one scheme; also the name of the entry point."""
        return (SCHEME,)

    def update_capabilities(self) -> None:
        """They never change."""

    def configure_add(self) -> None:
        """Check the options; nothing is connected to.

        :raises BadStoreConfiguration: an option cannot work; Glance starts
            with this store switched off for writing
        :raises BackendException: another store has this repository; Glance
            does not start
        """
        ours = self._configure().settings
        for other in self._earlier_store_ids():
            try:
                theirs = conf.settings(self.conf, other)
            except exceptions.BadStoreConfiguration:
                continue  # it says so itself
            if theirs.repository == ours.repository:
                raise exceptions.BackendException(self._shared_with(other))

    def _configure(self) -> connection.Connection:
        settings = conf.settings(self.conf, self.backend_group)
        self._threads = settings.threads
        self._chunk_size_bytes = settings.chunk_size_bytes
        self._connection = connection.Connection(settings, self._refuse_shared)
        return self._connection

    @property
    def url_prefix(self) -> str | None:
        """How locations of this store begin; None while that is unknown.

        Glance asks for it to find the store of a location that it was given.
        Only the repository knows its uuid, so this may connect.
        """
        try:
            self._repository()
        except exceptions.GlanceStoreException as error:
            LOG.warning(
                'The locations of store "%s" are not recognised until its '
                'repository answers: %s',
                self.backend_group,
                error,
            )
        uuid = self._connection.uuid if self._connection else None
        return prefix(uuid) if uuid else None

    def _earlier_store_ids(self) -> list[str]:
        """Ids of the stores of this type that are listed before this one."""
        earlier = []
        for store_id, store_type in self.conf.enabled_backends.items():
            if store_id == self.backend_group:
                break
            if store_type == SCHEME:
                earlier.append(store_id)
        return earlier

    def _shared_with(self, other: str) -> str:
        return (
            f'stores "{other}" and "{self.backend_group}" have the same '
            f'repository; a repository backs one store: remove '
            f'"{self.backend_group}" from "[DEFAULT] enabled_backends", or '
            f'give it a repository of its own'
        )

    def _refuse_shared(self, uuid: str) -> None:
        """:raises BadStoreConfiguration: an earlier store has this uuid"""
        stores = glance_store.location.SCHEME_TO_CLS_BACKEND_MAP
        for other in self._earlier_store_ids():
            registered = stores.get(SCHEME, {}).get(other)
            if registered and registered['store'].url_prefix == prefix(uuid):
                raise conf.bad_configuration(
                    self.backend_group, self._shared_with(other)
                )

    # The repository

    def _repository(self) -> repository.Repository:
        # Without a connection configure_add refused the options; here they
        # are refused again.
        return (self._connection or self._configure()).get()

    def _look_up(
        self, location: glance_store.location.Location
    ) -> tuple[api.Blob, api.Version]:
        """What a location names, if the catalog minted it.

        Whoever asks reads it, so it is provisional no longer.

        :raises BadStoreUri: it is another repository's, or forged
        :raises NotFound: it was deleted
        """
        catalog = self._repository().catalog
        with errors.translated():
            version = catalog.check_location(location.store_location.get_uri())
            blob = catalog.get(version.blob_id)
            if blob.state is api.State.PROVISIONAL:
                catalog.activate(blob.id)
        return blob, version

    def _clean_up(self, images: repository.Repository, image_id: str) -> None:
        """Drop a blob whose location Glance never got."""
        try:
            images.delete(image_id)
        except lazy.NotFound:
            pass
        except lazy.LazyBlobError as error:
            LOG.warning(
                'What failed to become image "%s" in store "%s" may still be '
                'there; delete it with "lazyimage delete": %s',
                image_id,
                self.backend_group,
                error,
            )

    # What Glance asks for

    @glance_store.driver.back_compat_add
    @capabilities.check
    def add(
        self,
        image_id: str,
        image_file: Any,
        image_size: int,
        hashing_algo: str,
        context: Any = None,
        verifier: Any = None,
    ) -> tuple[str, int, str, str, dict[str, str]]:
        """Store an image, whole or not at all.

        :param image_id: becomes the blob's id
        :param image_file: a file, or an iterable of bytes
        :param image_size: how many bytes it has; 0: not known
        :param hashing_algo: name of the multihash's algorithm
        :param context: whose image it is
        :param verifier: gets every byte, if given
        :returns: location, size, md5, multihash, metadata of the location
        :raises Duplicate: the image is stored already
        :raises Invalid: the size is not what ``image_size`` says
        :raises StorageFull: the chunk store has no room
        :raises StorageWriteDenied: the chunk store refuses
        :raises Unavailable: catalog or chunk store do not answer
        """
        images = self._repository()
        hashing = upload.Hashing(['md5', hashing_algo])
        stream = upload.Upload(
            image_file, image_size, hashing, verifier, self.WRITE_CHUNKSIZE
        )
        try:
            with errors.translated():
                version = images.create(
                    stream,
                    blob_id=image_id,
                    project_id=project_of(context),
                    chunk_size_bytes=self._chunk_size_bytes,
                    size_bytes=image_size or None,
                    threads=self._threads,
                )
                url = images.catalog.mint_location(image_id, version.number)
            md5, multihash = hashing.hexdigests()
        except BaseException as error:
            if isinstance(error.__cause__, lazy.Conflict):
                raise exceptions.Duplicate(
                    message=f'image "{image_id}" is in store '
                    f'"{self.backend_group}" already; delete it first'
                ) from error
            if stream.is_complete:  # it may have been published
                self._clean_up(images, image_id)
            if error is stream.failure or stream.failure is None:
                raise
            raise stream.failure  # noqa: B904  # its own cause stays
        finally:
            hashing.close()
        LOG.debug(
            'Stored image "%s" in store "%s": %d bytes',
            image_id,
            self.backend_group,
            stream.received_bytes,
        )
        metadata = {'store': self.backend_group}
        return url, stream.received_bytes, md5, multihash, metadata

    @capabilities.check
    def get(
        self,
        location: glance_store.location.Location,
        offset: int = 0,
        chunk_size: int | None = None,
        context: Any = None,
    ) -> tuple[Iterator[bytes], int]:
        """The bytes of an image, or a range of them.

        :param chunk_size: length of the range; None: to the end
        :returns: an iterator, and the range's length or the image's size
        :raises NotFound: the image is gone
        :raises BadStoreUri: the location is not ours
        :raises Unavailable: catalog or chunk store do not answer
        """
        blob, version = self._look_up(location)
        with errors.translated():
            reader = self._repository().reader(
                version.root, blob.scope, threads=self._threads
            )
        return (
            errors.translated_pieces(reader.stream(offset, chunk_size)),
            chunk_size or version.size_bytes,
        )

    def get_size(
        self,
        location: glance_store.location.Location,
        context: Any = None,
    ) -> int:
        """The size of an image in bytes.

        :raises NotFound: the image is gone
        :raises BadStoreUri: the location is not ours
        :raises Unavailable: the catalog does not answer
        """
        url = location.store_location.get_uri()
        size_bytes = self._sizes.get(url)
        if size_bytes is None:
            size_bytes = self._look_up(location)[1].size_bytes
            self._sizes.put(url, size_bytes)
        return size_bytes

    @capabilities.check
    def delete(
        self,
        location: glance_store.location.Location,
        context: Any = None,
    ) -> None:
        """Drop an image's blob; what others share of it stays.

        :raises NotFound: it is gone already
        :raises Forbidden: it belongs to another project
        :raises BadStoreUri: the location is not ours
        :raises Unavailable: the catalog does not answer
        """
        url = location.store_location.get_uri()
        catalog = self._repository().catalog
        with errors.translated():
            version = catalog.check_location(url)
            if catalog.get(version.blob_id).kind is not api.Kind.IMAGE:
                raise lazy.Forbidden(
                    f'blob "{version.blob_id}" is the disk of a server and '
                    f'not an image; delete the server'
                )
            catalog.delete(
                version.blob_id,
                project_id=None if is_admin(context) else project_of(context),
            )
        self._sizes.drop(url)

    def set_acls(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: who may read an image is Glance's to say."""


def prefix(uuid: str) -> str:
    """How the locations of a repository begin."""
    return f'{SCHEME}://{uuid}/'


def is_admin(context: Any) -> bool:
    """Whether a request is an administrator's."""
    return bool(getattr(context, 'is_admin', False))


def project_of(context: Any) -> str:
    """The project a request is made for; '' without one.

    A call without a context owns only what was stored without one.
    """
    return getattr(context, 'project_id', None) or ''
