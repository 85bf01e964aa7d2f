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
"""A real RabbitMQ on loopback ports, started as an ordinary process.

Node, port mapper and files are its own; it is ended by its pid.
"""

import os
import pathlib
import shutil
import socket
import subprocess
import time

import pytest

START_SECONDS_MAX = 90
# The one in PATH changes users on Debian; this is the server itself.
_SERVERS = '/usr/lib/rabbitmq/bin'


def _free_ports(count: int) -> list[int]:
    listeners = [socket.socket() for _ in range(count)]
    for listener in listeners:
        listener.bind(('127.0.0.1', 0))
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(('127.0.0.1', port), 2) as connection:
            connection.sendall(b'AMQP\x00\x00\x09\x01')
            return bool(connection.recv(8))
    except OSError:
        return False


def program() -> str | None:
    """The server's, if it is installed."""
    return shutil.which(
        'rabbitmq-server', path=f'{_SERVERS}:{os.environ["PATH"]}'
    )


class RabbitMQ:
    """One server, answering.

    :ivar url: a ``transport_url``
    """

    def __init__(self, folder: pathlib.Path) -> None:
        server = program()
        if server is None:
            pytest.fail(
                'rabbitmq-server is not installed; install it (Debian: '
                'rabbitmq-server)',
                pytrace=False,
            )
        port, dist_port, self._mapper_port = _free_ports(3)
        self.url = f'rabbit://guest:guest@127.0.0.1:{port}/'
        environment = {
            **os.environ,
            'HOME': str(folder),
            'ERL_EPMD_ADDRESS': '127.0.0.1',
            'ERL_EPMD_PORT': str(self._mapper_port),
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
            self._process = subprocess.Popen(
                [server],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        until = time.monotonic() + START_SECONDS_MAX
        while not _answers(port):
            if self._process.poll() is not None or time.monotonic() > until:
                self.end()
                pytest.fail(f'RabbitMQ did not start: {log.read_text()}')
            time.sleep(0.2)

    def end(self) -> None:
        self._process.terminate()
        self._process.wait(30)
        mapper = shutil.which('epmd')
        if mapper:
            subprocess.run(
                [mapper, '-port', str(self._mapper_port), '-kill'],
                capture_output=True,
            )
