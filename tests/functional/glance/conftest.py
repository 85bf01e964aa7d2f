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
"""Repositories for the tests of Glance's door."""

import dataclasses
import pathlib
import shutil
import sqlite3

import glance
import glance_store
import pytest
from glance.common import wsgi_app
from glance.tests import functional
from oslo_config import cfg
from oslo_db import options as db_options

from lazyblob import repository

db_options.set_defaults(cfg.CONF)


@dataclasses.dataclass
class Place:
    """A repository in a folder, and how to look at it from outside."""

    folder: pathlib.Path

    @property
    def options(self):
        """What a store of type blob needs to be told."""
        return {
            'blob_store_chunk_store': f'file://{self.folder}/chunks',
            'blob_store_catalog': f'sqlite:///{self.folder}/catalog.sqlite',
        }

    @property
    def repository(self):
        return repository.connect(
            self.options['blob_store_chunk_store'],
            self.options['blob_store_catalog'],
        )

    def rows(self):
        """What the catalog holds of images: blobs, versions, tombstones."""
        with sqlite3.connect(self.folder / 'catalog.sqlite') as database:
            blobs = database.execute('SELECT id, state, head FROM blobs')
            found = blobs.fetchall()
            versions = database.execute('SELECT blob_id, number FROM versions')
            numbers = versions.fetchall()
            sessions = database.execute(
                'SELECT count(*) FROM sessions WHERE ended_at IS NULL'
            ).fetchone()
        return {
            'blobs': sorted(
                b for b, state, _ in found if state != 'tombstone'
            ),
            'tombstones': sorted(
                b for b, state, _ in found if state == 'tombstone'
            ),
            'versions': sorted(numbers),
            'open sessions': sessions[0],
        }

    def is_empty(self):
        """Whether no image, nor a trace of a failed one, is left."""
        rows = self.rows()
        assert rows.pop('tombstones') is not None
        return not any(rows.values())


@pytest.fixture(scope='session')
def prepared(tmp_path_factory):
    """An initialised repository per name, to be copied: that is quicker."""
    made = {}

    def prepare(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(f'prepared-{name}')
            place = Place(folder)
            repository.initialise(
                place.options['blob_store_chunk_store'],
                place.options['blob_store_catalog'],
            )
            made[name] = folder
        return made[name]

    return prepare


@pytest.fixture
def new_repository(prepared, tmp_path):
    """``new_repository(name)``: an empty one; its uuid is the name's own."""

    def make(name='repository'):
        folder = tmp_path / name
        shutil.copytree(prepared(name), folder)
        return Place(folder)

    return make


@pytest.fixture(autouse=True)
def glance_tree(monkeypatch):
    """Glance's tests open their data by paths relative to Glance's tree."""
    monkeypatch.chdir(pathlib.Path(glance.__file__).parents[1])


@pytest.fixture(scope='session')
def set_up_stores():
    """``set_up_stores(case, {store id: options})``: all of type blob.

    What ``setup_stores`` of Glance's base class does for file stores.
    """

    def set_up(case, stores):
        case.config(enabled_backends=dict.fromkeys(stores, 'blob'))
        glance_store.register_store_opts(
            cfg.CONF, reserved_stores=wsgi_app.RESERVED_STORES
        )
        case.config(default_backend=next(iter(stores)), group='glance_store')
        for store, options in stores.items():
            case.config(group=store, **options)
        for store in ('staging', 'tasks'):
            case.config(
                group=f'os_glance_{store}_store',
                filesystem_store_datadir=case._store_dir(store),
            )
        glance_store.create_multi_stores(
            cfg.CONF, reserved_stores=wsgi_app.RESERVED_STORES
        )
        glance_store.verify_store()

    return set_up


class Api(functional.SynchronousAPIBase):
    """Glance's API in this process; not a test, but what one drives."""

    stores = None

    def setup_stores(self):
        self.set_up_stores(self, self.stores)

    def headers(self, project, role='member', **more):
        return {
            'X-Identity-Status': 'Confirmed',
            'X-Tenant-Id': project,
            'X-User-Id': f'user-of-{project}',
            'X-Roles': role,
        } | more


@pytest.fixture
def new_glance(set_up_stores):
    """``new_glance(stores)``: Glance's API on stores of type blob."""
    started = []

    def start(stores, **configuration):
        api = Api('__init__')
        api.stores = stores
        api.set_up_stores = staticmethod(set_up_stores)
        started.append(api)
        api.setUp()
        for name, value in configuration.items():
            api.config(**{name: value})
        api.start_server()
        return api

    yield start
    for api in started:
        api.tearDown()
        api.doCleanups()
