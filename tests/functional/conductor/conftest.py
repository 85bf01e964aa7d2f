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
"""A real RabbitMQ on loopback ports, and the daemons beside it."""

import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time

import pytest
from oslo_config import cfg
from oslo_messaging import conffixture

import nova_lazyimage
from tests.functional.waits import wait_for

ROOT = pathlib.Path(nova_lazyimage.__file__).parent.parent
CONTRACTS = ROOT / 'tests' / 'unit' / 'lazyblob'
sys.path.insert(0, str(CONTRACTS))
pytest.register_assert_rewrite('catalog_contract')

START_SECONDS_MAX = 90
# The one in PATH changes users on Debian; this is the server itself.
_SERVERS = '/usr/lib/rabbitmq/bin'


def _free_ports(count):
    listeners = [socket.socket() for _ in range(count)]
    for listener in listeners:
        listener.bind(('127.0.0.1', 0))
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def _answers(port):
    try:
        with socket.create_connection(('127.0.0.1', port), 2) as connection:
            connection.sendall(b'AMQP\x00\x00\x09\x01')
            return bool(connection.recv(8))
    except OSError:
        return False


@pytest.fixture(scope='session')
def rabbitmq(tmp_path_factory):
    """Its URL. Node, port mapper and files are this run's own."""
    server = shutil.which(
        'rabbitmq-server', path=f'{_SERVERS}:{os.environ["PATH"]}'
    )
    if server is None:
        pytest.fail(
            'rabbitmq-server is not installed; install it (Debian: '
            'rabbitmq-server)',
            pytrace=False,
        )
    folder = tmp_path_factory.mktemp('rabbitmq')
    port, dist_port, mapper_port = _free_ports(3)
    environment = {
        **os.environ,
        'HOME': str(folder),
        'ERL_EPMD_ADDRESS': '127.0.0.1',
        'ERL_EPMD_PORT': str(mapper_port),
        'RABBITMQ_CONF_ENV_FILE': '/dev/null',
        'RABBITMQ_CONFIG_FILE': str(folder / 'none'),
        'RABBITMQ_DIST_PORT': str(dist_port),
        'RABBITMQ_ENABLED_PLUGINS_FILE': str(folder / 'plugins'),
        'RABBITMQ_LOGS': '-',
        'RABBITMQ_LOG_BASE': str(folder / 'log'),
        'RABBITMQ_MNESIA_BASE': str(folder / 'mnesia'),
        'RABBITMQ_NODENAME': f'lazyimage-{os.getpid()}@localhost',
        'RABBITMQ_NODE_IP_ADDRESS': '127.0.0.1',
        'RABBITMQ_NODE_PORT': str(port),
        'RABBITMQ_PID_FILE': str(folder / 'pid'),
        'RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS': (
            '-kernel inet_dist_use_interface {127,0,0,1}'
        ),
    }
    log = folder / 'output'
    with log.open('wb') as output:
        process = subprocess.Popen(
            [server],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        until = time.monotonic() + START_SECONDS_MAX
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > until:
                pytest.fail(f'RabbitMQ did not start: {log.read_text()}')
            time.sleep(0.2)
        yield f'rabbit://guest:guest@127.0.0.1:{port}/'
    finally:
        process.terminate()
        process.wait(30)
        mapper = shutil.which('epmd', path=f'{os.environ["PATH"]}')
        if mapper:
            subprocess.run(
                [mapper, '-port', str(mapper_port), '-kill'],
                capture_output=True,
            )


@pytest.fixture
def conf(rabbitmq):
    """The configuration of a process on that bus."""
    made = cfg.ConfigOpts()
    fixture = conffixture.ConfFixture(made)
    fixture.setUp()
    made([], project='lazyimage', default_config_files=[])
    fixture.transport_url = rabbitmq
    yield made
    fixture.cleanUp()


class Daemon:
    """``lazyimage-agent`` or ``lazyimage-conductor`` with a file."""

    def __init__(self, name, path, log):
        self._log = log
        with log.open('ab') as output:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    '-m',
                    f'nova_lazyimage.cmd.{name}',
                    '--config-file',
                    str(path),
                ],
                env={**os.environ, 'PYTHONPATH': str(ROOT)},
                stdout=output,
                stderr=output,
            )

    def wait_for(self, text):
        """Until it has said so, since it was started last."""

        def said():
            assert self.process.poll() is None, self._log.read_text()
            return text in self._log.read_text()

        wait_for(said, f'"{text}"', 60)
        return self

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        self.process.terminate()
        return self.process.wait(30)


@pytest.fixture
def daemon(tmp_path):
    """Starts a daemon; it is ended with the test."""
    started = []

    def start(name, path):
        log = tmp_path / f'{name}-{len(started)}.log'
        started.append(Daemon(name, path, log))
        return started[-1]

    yield start
    for made in started:
        if made.process.poll() is None:
            made.kill()
