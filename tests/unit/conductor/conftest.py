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
"""A conductor in this process, on oslo.messaging's in-memory transport."""

import pathlib
import sys

import pytest
from oslo_config import cfg
from oslo_messaging import conffixture

from lazyblob import repository
from lazyblob.catalog import sql
from nova_lazyimage.conductor import rpcapi
from nova_lazyimage.conductor import service

CONTRACTS = pathlib.Path(__file__).parents[1] / 'lazyblob'
sys.path.insert(0, str(CONTRACTS))
pytest.register_assert_rewrite('catalog_contract')


@pytest.fixture
def conf():
    made = cfg.ConfigOpts()
    fixture = conffixture.ConfFixture(made)
    fixture.setUp()
    made([], project='lazyimage', default_config_files=[])
    fixture.transport_url = 'fake:/'
    yield made
    fixture.cleanUp()


@pytest.fixture
def database(tmp_path):
    """URL of an empty catalog."""
    chunk_store, catalog = repository.urls_of(
        (tmp_path / 'repository').as_uri()
    )
    repository.initialise(chunk_store, catalog).close()
    return catalog


@pytest.fixture
def conductor(conf, database):
    made = service.Conductor(conf, sql.SqlCatalog(database), 'host', 4)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def open_catalog(conf, conductor):
    opened = []

    def make(timeout_seconds=20):
        catalog = rpcapi.RpcCatalog(conf=conf, timeout_seconds=timeout_seconds)
        # One in-memory exchange: the client must share the server's.
        catalog._transport = conductor._transport
        opened.append(catalog)
        return catalog

    return make
