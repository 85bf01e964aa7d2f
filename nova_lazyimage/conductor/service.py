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
"""The conductor: an RPC server in front of the catalog's database."""

from typing import Any

import oslo_messaging
from oslo_config import cfg
from oslo_log import log as logging
from oslo_messaging.rpc import dispatcher

from lazyblob import exceptions
from lazyblob import plugins
from lazyblob import urls
from lazyblob.catalog import api
from nova_lazyimage.conductor import manager
from nova_lazyimage.conductor import rpcapi
from nova_lazyimage.conductor import signing

LOG = logging.getLogger(__name__)


def open_catalog(url: str) -> api.Catalog:
    """The database's catalog, known to work.

    :raises InvalidConfiguration: no URL of a database, or of another schema
    :raises CatalogUnavailable: it does not answer
    """
    if not url or urls.scheme(url) == 'rpc':
        raise exceptions.InvalidConfiguration(
            f'[conductor] catalog is "{urls.masked(url)}"; set it to the URL '
            'of the catalog\'s database'
        )
    catalog = plugins.catalog(url)
    LOG.info('The repository is %s', catalog.repository().uuid)
    return catalog


class Conductor:
    """One conductor.

    :param host: names this server among others on the topic
    :param signer: of its answers
    """

    def __init__(
        self,
        conf: cfg.ConfigOpts,
        catalog: api.Catalog,
        host: str,
        threads: int,
        transport_url: str | None = None,
        signer: signing.Signer | None = None,
    ) -> None:
        self._catalog = catalog
        self._transport = oslo_messaging.get_rpc_transport(
            conf, url=transport_url
        )
        self._server: Any = oslo_messaging.get_rpc_server(
            self._transport,
            oslo_messaging.Target(
                exchange=rpcapi.EXCHANGE, topic=rpcapi.TOPIC, server=host
            ),
            [manager.Manager(catalog, signer)],
            executor='threading',
            access_policy=dispatcher.DefaultRPCAccessPolicy,
        )
        # The server has registered the option, and reads it at its start.
        conf.set_override('executor_thread_pool_size', threads)

    def start(self) -> None:
        """Answer."""
        self._server.start()

    def stop(self) -> None:
        """Answer what was asked, then nothing more."""
        self._server.stop()
        self._server.wait()
        self._transport.cleanup()
        self._catalog.close()
