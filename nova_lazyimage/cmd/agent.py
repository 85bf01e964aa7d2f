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
"""``lazyimage-agent``: serves the mirrors of one host.

On a compute node it reads ``lazyimage.conf``. Without a cloud, ``--repository
file:///folder`` makes it serve one repository as whoever starts it.

The main thread only waits for signals, which every other thread has blocked
(contract 13). The end is ``_exit``: nothing that still waits for a store can
hold it up.

How it ends is told by the signal, and told to whoever started it by the
status:

============== =============================================== ======
SIGINT         for good: the mount goes                        0
SIGTERM        for a successor, if somebody keeps the session  75
               and there are disks: guests wait; else for good 0
SIGHUP         as SIGTERM, disks or none: a successor waits    75
============== =============================================== ======

Anything else is a failure. Only after 0 does a keeper not start it again.
"""

import hashlib
import os
import pathlib
import re
import signal
import sys
import urllib.parse
from typing import Any

from oslo_config import cfg
from oslo_log import log as logging

from lazyblob import conf as store_conf
from lazyblob import exceptions
from nova_lazyimage.agent import keeper
from nova_lazyimage.agent import service
from nova_lazyimage.agent import state
from nova_lazyimage.conf import agent as agent_conf
from nova_lazyimage.conf import conductor as conductor_conf
from nova_lazyimage.conf import repository as repository_conf

LOG = logging.getLogger(__name__)

SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
# "Temporary failure" of sysexits.h: start me again.
HANDED_OVER = 75

CLI_OPTIONS = [
    cfg.StrOpt(
        'repository',
        metavar='URL',
        help='Serve the repository in this folder, without a cloud: '
        'file:///folder.',
    ),
    cfg.StrOpt(
        'state',
        metavar='DIRECTORY',
        help='With --repository: where the disks live; default: a folder of '
        'that repository below $XDG_STATE_HOME/lazyimage.',
    ),
]


def stand_alone_state(url: str) -> pathlib.Path:
    """Where a stand-alone agent of a repository keeps its disks."""
    home = os.environ.get('XDG_STATE_HOME') or os.path.expanduser(
        '~/.local/state'
    )
    path = urllib.parse.urlsplit(url).path.rstrip('/')
    name = re.sub(r'[^A-Za-z0-9_-]', '-', os.path.basename(path))
    digest = hashlib.sha256(url.rstrip('/').encode()).hexdigest()[:8]
    return pathlib.Path(home, 'lazyimage', f'{name or "repository"}-{digest}')


def stand_alone_socket(directory: pathlib.Path) -> pathlib.Path:
    """Where a stand-alone agent listens."""
    return directory / 'run' / 'agent.sock'


def settings(conf: cfg.ConfigOpts) -> service.Settings:
    """What the configuration says."""
    agent = conf.agent
    chosen = {
        'state_directory': agent.state_directory,
        'run_directory': agent.run_directory,
        'mount_root': agent.mount_root,
        'socket': agent.socket,
        'socket_group': agent.socket_group,
        'user': agent.user,
        'chunk_store': conf.repository.chunk_store,
        'catalog': conf.repository.catalog,
    }
    if conf.repository_url:
        chosen |= _stand_alone(conf)
    return service.Settings(
        host=agent.host,
        metrics_address=agent.metrics_address,
        cache_bytes=agent.cache_bytes,
        cache_directory=agent.cache_directory,
        cache_reserve_bytes=agent.cache_reserve_bytes,
        cache_scrub_bytes_per_second=agent.cache_scrub_bytes_per_second,
        engine_threads=agent.engine_threads,
        fetch_threads=agent.fetch_threads,
        guest_fetch_threads=agent.guest_fetch_threads,
        upload_threads=agent.upload_threads,
        upload_bytes_per_second=agent.upload_bytes_per_second,
        upload_share_percent=agent.upload_share_percent,
        fetch_timeout_seconds=agent.fetch_timeout_seconds,
        store_alarm_seconds=agent.store_alarm_seconds,
        slow_request_seconds=agent.slow_request_seconds,
        on_full=agent.on_full,
        store_settings=store_conf.store_settings(
            lambda name: getattr(conf.repository, name)
        ),
        **chosen,
    )


def _stand_alone(conf: cfg.ConfigOpts) -> dict[str, str]:
    from lazyblob import repository

    url = conf.repository_url
    chunk_store, catalog = repository.urls_of(url)
    directory = stand_alone_state(url)
    if conf.state:
        directory = pathlib.Path(conf.state).absolute()
    return {
        'state_directory': str(directory),
        'run_directory': str(directory / 'run'),
        'mount_root': str(directory / 'mnt'),
        'socket': str(stand_alone_socket(directory)),
        'socket_group': '',
        'user': '',
        'chunk_store': chunk_store,
        'catalog': catalog,
    }


def configure(argv: list[str]) -> cfg.ConfigOpts:
    """Read options and files; start to log."""
    # The process's own: oslo.messaging's drivers read it, too.
    conf = cfg.CONF
    logging.register_options(conf)
    for module in (repository_conf, agent_conf, conductor_conf):
        module.register_opts(conf)
    repository_url, state_directory = CLI_OPTIONS
    # [repository] is a group; the option's variable is another name.
    repository_url.dest = 'repository_url'
    conf.register_cli_opts([repository_url, state_directory])
    conf(argv, project='lazyimage', prog='lazyimage-agent')
    logging.setup(conf, 'lazyimage')
    return conf


def connect(chunk_store: str, catalog: str, **more: Any) -> Any:
    """The repository, with all that it loads: not before disks are served."""
    from lazyblob import repository
    from nova_lazyimage.cmd import threads

    if catalog.startswith('rpc:'):
        threads.use_native()
        if not cfg.CONF.conductor.public_keys:
            LOG.warning(
                'Whatever answers on the message bus in the conductor\'s name '
                'is believed; set [conductor] public_keys'
            )
    return repository.connect(chunk_store, catalog, **more)


def main(argv: list[str] | None = None) -> int:
    """Serve until told to stop."""
    held = keeper.Keeper(keeper.take_descriptors(), keeper.take_beside())
    # Before any thread exists, so that all of them inherit it.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    conf = configure(sys.argv[1:] if argv is None else argv)
    try:
        # The engine is loaded here: the check command needs none.
        from nova_lazyimage import _mirror

        os.umask(0o022)
        agent = service.Agent(settings(conf), _mirror.Engine, held, connect)
        agent.start()
    except (
        exceptions.LazyBlobError,
        keeper.Abandoned,
        state.Locked,
        OSError,
    ) as exc:
        LOG.error('The agent cannot start: %s', exc)
        print(f'lazyimage-agent: {exc}', file=sys.stderr)
        _leave(1)
    except Exception as exc:
        LOG.exception('The agent cannot start')
        print(f'lazyimage-agent: {exc}', file=sys.stderr)
        _leave(1)
    number = signal.sigwait(SIGNALS)
    for_good = (
        number == signal.SIGINT
        or not agent.may_hand_over
        or (number == signal.SIGTERM and not agent.is_needed)
    )
    LOG.info('Stopping: %s', signal.Signals(number).name)
    try:
        agent.stop(for_good=for_good)
    except Exception:
        LOG.exception('The stop was not in order')
        _leave(1)
    _leave(0 if for_good else HANDED_OVER)
    return 0


def _leave(status: int) -> None:
    """End now: threads that wait for a store are not waited for."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == '__main__':
    sys.exit(main())
