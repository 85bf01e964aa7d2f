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
"""The conductor's process.

Any number of them may run; each answers what the others do not. The main
thread only waits for signals.
"""

import signal
import socket
import sys
import time

import oslo_messaging
from oslo_config import cfg
from oslo_log import log as logging

from lazyblob import exceptions
from lazyblob.catalog import api
from nova_lazyimage.agent import keeper
from nova_lazyimage.conductor import rpcapi
from nova_lazyimage.conductor import service
from nova_lazyimage.conf import conductor as conductor_conf

LOG = logging.getLogger(__name__)

SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
PAUSE_SECONDS = 2.0


def configure(argv: list[str]) -> cfg.ConfigOpts:
    """Read options and files; start to log."""
    conf = cfg.CONF
    logging.register_options(conf)
    conductor_conf.register_opts(conf)
    conf(argv, project='lazyimage', prog='lazyimage-conductor')
    logging.setup(conf, 'lazyimage')
    return conf


def wait_for_catalog(url: str) -> api.Catalog | None:
    """The catalog, or None if told to stop before it answered."""
    said = False
    while True:
        try:
            return service.open_catalog(url)
        except exceptions.CatalogUnavailable as exc:
            if not said:
                LOG.warning('Waiting for the catalog\'s database: %s', exc)
                said = True
        until = time.monotonic() + PAUSE_SECONDS
        if signal.sigtimedwait(SIGNALS, max(0, until - time.monotonic())):
            return None


def run(argv: list[str]) -> int:
    """Answer until told to stop."""
    # Before any thread exists, so that all of them inherit it.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    conf = configure(argv)
    try:
        catalog = wait_for_catalog(conf.conductor.catalog)
        if catalog is None:
            return 0
        conductor = service.Conductor(
            conf, catalog, socket.gethostname(), conf.conductor.threads
        )
        conductor.start()
    except (
        exceptions.LazyBlobError,
        oslo_messaging.MessagingException,
    ) as exc:
        LOG.error('The conductor cannot start: %s', exc)
        print(f'lazyimage-conductor: {exc}', file=sys.stderr)
        return 1
    LOG.info('Answering on topic %s', rpcapi.TOPIC)
    keeper.notify('READY=1')
    number = signal.sigwait(SIGNALS)
    LOG.info('Stopping: %s', signal.Signals(number).name)
    keeper.notify('STOPPING=1')
    conductor.stop()
    return 0
