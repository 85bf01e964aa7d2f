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
"""A repository on files and a real agent beside it: engine, mount, socket."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import uuid

import pytest

import nova_lazyimage
from lazyblob import repository
from nova_lazyimage.agent import client
from tests.functional import waits
from tests.functional.waits import wait_for

ROOT = pathlib.Path(nova_lazyimage.__file__).parent.parent
FAULTY_AGENT = pathlib.Path(__file__).with_name('faulty_agent.py')
CHUNK_BYTES = 256 * 1024


class Agent:
    """One process of the agent."""

    def __init__(self, site):
        self.site = site
        self.output = (site.folder / 'agent.log').open('ab')
        self.process = subprocess.Popen(
            [
                sys.executable,
                str(FAULTY_AGENT),
                *site.arguments,
            ],
            stdout=self.output,
            stderr=self.output,
            env=site.environment(),
        )

    def wait_until_ready(self):
        def is_ready():
            assert self.process.poll() is None, self.site.log()
            try:
                return self.site.client.status()['ready']
            except client.AgentUnavailable:
                return False

        wait_for(is_ready, 'the agent', 30)
        return self

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.output.close()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(30)
        self.output.close()
        return status


class Site:
    """A repository, a state directory, and the agent that has it now."""

    def __init__(self, folder):
        self.folder = folder
        self.url = (folder / 'repository').as_uri()
        self.state = folder / 'state'
        self.arguments = [
            '--repository',
            self.url,
            '--state',
            str(self.state),
        ]
        self.more = {}  # of the agent's environment
        self.faults = folder / 'faults'
        self.faults.mkdir()
        self.repository = repository.initialise(*repository.urls_of(self.url))
        self.client = client.AgentClient(
            str(self.state / 'run' / 'agent.sock'), 20
        )
        self.agent = None

    def environment(self):
        return {
            **os.environ,
            'PYTHONPATH': str(ROOT),
            'AGENT_FAULTS': str(self.faults),
            **self.more,
        }

    def start(self):
        self.agent = Agent(self).wait_until_ready()
        return self.client

    def kill(self):
        self.agent.kill()
        self.agent = None

    def stop(self):
        agent, self.agent = self.agent, None
        return agent.stop()

    def restart_killed(self):
        self.kill()
        return self.start()

    def tell(self, fault, text=''):
        (self.faults / fault).write_text(text)

    def untell(self, fault):
        (self.faults / fault).unlink()

    def log(self):
        return (self.folder / 'agent.log').read_text()

    def image(self, data, blob_id=None):
        blob_id = blob_id or str(uuid.uuid4())
        self.repository.create(
            [data],
            blob_id=blob_id,
            project_id='project',
            chunk_size_bytes=CHUNK_BYTES,
        )
        return blob_id

    def read(self, blob_id, version=None):
        return b''.join(self.repository.open(blob_id, version).stream())

    def commit(self, key, image_id=None):
        """Commit and wait; the state that was published."""
        commit_id = str(uuid.uuid4())
        self.client.commit(*key, commit_id=commit_id, image_id=image_id)
        return self.client.wait_for_commit(*key, commit_id, 30)

    def blobs(self):
        return {blob.id for blob in self.repository.catalog.list_blobs()}

    def left(self):
        """Files that attachments keep, the chunk cache aside."""
        found = []
        for folder in ('mirrors', 'manifests', 'journal', 'run/live'):
            for path in (self.state / folder).iterdir():
                if path.name not in (
                    'lock',
                    'session',
                    'repository',
                    'images',  # of snapshots that Glance has not read
                ):
                    found.append(str(path.relative_to(self.state)))
        return found

    def close(self):
        if self.agent is not None:
            self.agent.kill()
        waits.unmount(self.state / 'mnt')


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope='module')
def lasting_site(tmp_path_factory):
    """One for several tests, which know of each other; not started."""
    made = Site(tmp_path_factory.mktemp('lasting'))
    yield made
    made.close()


@pytest.fixture
def noise():
    """Bytes that nothing compresses, some of them holes."""
    return noise_of


def noise_of(size_bytes, seed=1):
    chance = random.Random(seed)
    data = bytearray(chance.randbytes(size_bytes))
    for start in range(0, size_bytes - CHUNK_BYTES, 4 * CHUNK_BYTES):
        data[start : start + CHUNK_BYTES] = bytes(CHUNK_BYTES)
    return bytes(data)


@pytest.fixture
def key():
    return str(uuid.uuid4()), 'disk'


@pytest.fixture(scope='module')
def shared(tmp_path_factory):
    """An agent that serves nothing, for tests that change nothing."""
    made = Site(tmp_path_factory.mktemp('shared'))
    agent = made.start()
    # It notes its repository in the journal, whenever it learns it.
    wait_for(lambda: agent.status()['repository'], 'its repository')
    yield made
    made.close()
