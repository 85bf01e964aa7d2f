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
"""Glance's own functional image suites, unchanged, on the store ``blob``.

Glance ships its tests. They run its whole API in this process on SQLite, with
the stores ``store1`` to ``store3``; conftest.py makes those of type ``blob``,
each with a repository of its own. Nothing else is replaced but the one helper
that looks into the folder of a file store.

``LAZYIMAGE_TEST_STORE_TYPE=file`` runs them on Glance's file store instead,
to tell a fault of ours from one of Glance or of this host.
"""

import os
import socket

import pytest
from glance.tests import functional
from glance.tests.functional.v2 import test_parallel_store_import
from glance.tests.functional.v2.test_cache_api import TestImageCache
from glance.tests.functional.v2.test_download_from_store import (
    TestDownloadFromStore,
)
from glance.tests.functional.v2.test_images import TestCopyImagePermissions
from glance.tests.functional.v2.test_images import TestImages
from glance.tests.functional.v2.test_images import TestImportProxy
from glance.tests.functional.v2.test_images import TestKeystoneQuotas
from glance.tests.functional.v2.test_images import TestQuotas
from glance.tests.functional.v2.test_images import TestStoreWeight
from glance.tests.functional.v2.test_images_import_locking import (
    TestImageImportLocking,
)
from glance.tests.functional.v2.test_multi_store_images import (
    TestImagesMultipleBackend,
)
from glance.tests.functional.v2.test_parallel_store_import import (
    TestParallelStoreImport,
)

__all__ = [
    'TestCopyImagePermissions',
    'TestDownloadFromStore',
    'TestImageCache',
    'TestImageImportLocking',
    'TestImages',
    'TestImagesMultipleBackend',
    'TestImportProxy',
    'TestKeystoneQuotas',
    'TestParallelStoreImport',
    'TestQuotas',
    'TestStoreWeight',
]

STORES = ('store1', 'store2', 'store3')
STORE_TYPE = os.environ.get('LAZYIMAGE_TEST_STORE_TYPE', 'blob')

pytestmark = pytest.mark.expect_logs('')


@pytest.fixture(autouse=True)
def stores_are_blobs(monkeypatch, new_repository, set_up_stores):
    """Replace the stores that Glance's base class configures."""
    if STORE_TYPE != 'blob':
        return
    places = {store: new_repository(store) for store in STORES}

    def options_of(case, store):
        # Some tests break a store by removing its empty folder. So the path
        # to its chunks leads through that folder.
        folder = case._store_dir(store)
        os.mkdir(folder)
        os.symlink(places[store].folder / 'chunks', f'{folder}.chunks')
        return places[store].options | {
            'blob_store_chunk_store': f'file://{folder}/../{store}.chunks'
        }

    monkeypatch.setattr(
        functional.SynchronousAPIBase,
        'setup_stores',
        lambda case: set_up_stores(
            case, {store: options_of(case, store) for store in STORES}
        ),
    )
    monkeypatch.setattr(
        test_parallel_store_import.TestParallelStoreImport,
        '_store_has_image_data',
        lambda case, store: not places[store].is_empty(),
    )


@pytest.fixture(autouse=True)
def names_resolve(monkeypatch):
    """Glance resolves names with a dot, which not every host can.

    Nothing listens at the address of ``example.com``; it is never reached.
    """
    addresses = {'localhost.': '127.0.0.1', 'example.com.': '192.0.2.1'}
    resolve = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        'getaddrinfo',
        lambda host, *args, **kwargs: resolve(
            addresses.get(host, host), *args, **kwargs
        ),
    )
