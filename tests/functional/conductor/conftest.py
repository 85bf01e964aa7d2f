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
"""A bus, and the daemons beside it."""

import os
import pathlib
import subprocess
import sys

import pytest
from oslo_config import cfg
from oslo_messaging import conffixture

import nova_lazyimage
from tests.functional.conductor import rabbit
from tests.functional.waits import wait_for

ROOT = pathlib.Path(nova_lazyimage.__file__).parent.parent
CONTRACTS = ROOT / 'tests' / 'unit' / 'lazyblob'
sys.path.insert(0, str(CONTRACTS))
pytest.register_assert_rewrite('catalog_contract')


@pytest.fixture(scope='session')
def rabbitmq(tmp_path_factory):
    """Its URL."""
    server = rabbit.RabbitMQ(tmp_path_factory.mktemp('rabbitmq'))
    yield server.url
    server.end()


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
