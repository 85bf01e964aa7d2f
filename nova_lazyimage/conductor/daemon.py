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

import pathlib
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
from nova_lazyimage.conductor import signing
from nova_lazyimage.conf import conductor as conductor_conf

LOG = logging.getLogger(__name__)

SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
PAUSE_SECONDS = 2.0

CLI_OPTIONS = [
    cfg.StrOpt(
        'new-signing-key',
        metavar='FILE',
        help='Write a new private key for [conductor] signing_key to FILE '
        'and its public key to FILE.pub, print the public key, and end.',
    ),
]


def configure(argv: list[str]) -> cfg.ConfigOpts:
    """Read options and files; start to log."""
    conf = cfg.CONF
    logging.register_options(conf)
    conductor_conf.register_opts(conf)
    conf.register_cli_opts(CLI_OPTIONS)
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


def signer_of(path: str) -> signing.Signer | None:
    """Of ``[conductor] signing_key``.

    :raises InvalidConfiguration: the file is none
    """
    if not path:
        LOG.warning(
            'Answers are not signed: whoever can speak on the message bus '
            'can answer in this conductor\'s name; set [conductor] '
            'signing_key'
        )
        return None
    signer = signing.Signer.load(path)
    LOG.info('Signing answers with the key of %s', signer.public_key)
    return signer


def make_key(path: str) -> int:
    """Write a key pair; the exit status."""
    try:
        public = signing.make_key(pathlib.Path(path))
    except OSError as exc:
        print(
            f'lazyimage-conductor: could not write --new-signing-key "{path}"'
            f': {exc.strerror}; name a new file in a folder of yours',
            file=sys.stderr,
        )
        return 1
    print(public)
    return 0


def run(argv: list[str]) -> int:
    """Answer until told to stop."""
    # Before any thread exists, so that all of them inherit it.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    conf = configure(argv)
    if conf.new_signing_key:
        return make_key(conf.new_signing_key)
    try:
        signer = signer_of(conf.conductor.signing_key)
        catalog = wait_for_catalog(conf.conductor.catalog)
        if catalog is None:
            return 0
        conductor = service.Conductor(
            conf,
            catalog,
            socket.gethostname(),
            conf.conductor.threads,
            signer=signer,
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
