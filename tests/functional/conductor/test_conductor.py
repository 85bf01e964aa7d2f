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
"""The catalog's promises over a real bus, and what holds without one."""

import os
import pathlib
import subprocess
import sys
import uuid

import catalog_contract
import pytest

from lazyblob import exceptions
from lazyblob import repository
from lazyblob.catalog import sql
from nova_lazyimage.agent import client
from nova_lazyimage.conductor import rpcapi
from nova_lazyimage.conductor import service
from tests.functional import waits

MIB = 1024 * 1024


@pytest.fixture
def urls(tmp_path):
    found = repository.urls_of((tmp_path / 'repository').as_uri())
    repository.initialise(*found).close()
    return found


@pytest.fixture
def open_catalog(conf, urls):
    conductor = service.Conductor(conf, sql.SqlCatalog(urls[1]), 'host', 8)
    conductor.start()
    opened = []

    def make():
        opened.append(rpcapi.RpcCatalog(conf=conf, timeout_seconds=20))
        return opened[-1]

    yield make
    for catalog in opened:
        catalog.close()
    conductor.stop()


class TestRabbitMQ(catalog_contract.CatalogContract):
    """The contract."""


@pytest.fixture
def conductor_file(tmp_path, rabbitmq, urls):
    path = tmp_path / 'conductor.conf'
    path.write_text(
        f'[DEFAULT]\ntransport_url = {rabbitmq}\n'
        f'[conductor]\ncatalog = {urls[1]}\n'
    )
    return path


def test_a_conductor_ends_in_order_and_the_catalog_is_away_then(
    conf, conductor_file, daemon
):
    conductor = daemon('conductor', conductor_file).wait_for('Answering')
    catalog = rpcapi.RpcCatalog(conf=conf, timeout_seconds=20)
    assert catalog.list_blobs() == []
    assert conductor.stop() == 0
    catalog.close()
    catalog = rpcapi.RpcCatalog(conf=conf, timeout_seconds=1)
    with pytest.raises(exceptions.CatalogUnavailable):
        catalog.list_blobs()
    again = daemon('conductor', conductor_file).wait_for('Answering')
    assert catalog.list_blobs() == []
    assert again.process.poll() is None
    catalog.close()


def test_a_conductor_without_a_database_says_so(tmp_path, rabbitmq, daemon):
    path = tmp_path / 'wrong.conf'
    path.write_text(f'[DEFAULT]\ntransport_url = {rabbitmq}\n')
    started = daemon('conductor', path)
    assert started.process.wait(30) == 1
    log = (tmp_path / 'conductor-0.log').read_text()
    assert '[conductor] catalog' in log


@pytest.fixture
def agent_file(tmp_path, rabbitmq, urls):
    state = tmp_path / 'state'
    path = tmp_path / 'agent.conf'
    path.write_text(
        f'[DEFAULT]\ntransport_url = {rabbitmq}\n'
        f'[repository]\nchunk_store = {urls[0]}\ncatalog = rpc://\n'
        f'[conductor]\ntimeout_seconds = 2\n'
        f'[agent]\nuser =\nsocket_group =\nstate_directory = {state}\n'
        f'run_directory = {tmp_path}/run\nmount_root = {state}/mnt\n'
        f'socket = {tmp_path}/run/agent.sock\n'
    )
    yield path
    waits.unmount(state / 'mnt')


def test_a_host_lives_without_the_conductor_and_works_with_it(
    tmp_path, urls, conductor_file, agent_file, daemon
):
    data = os.urandom(MIB)
    repository.connect(*urls).create([data], blob_id='image')
    conductor = daemon('conductor', conductor_file).wait_for('Answering')
    agent = daemon('agent', agent_file).wait_for('Ready')
    ask = client.AgentClient(str(tmp_path / 'run' / 'agent.sock'), 30)
    key = str(uuid.uuid4()), 'disk'
    mirror = ask.attach(*key, clone_blob='image')
    conductor.kill()
    # Attach and publish need it and say so; the disk does not.
    with pytest.raises(client.RepositoryUnavailable, match='conductor'):
        ask.attach(str(uuid.uuid4()), 'disk', clone_blob='image')
    with open(mirror['path'], 'r+b', buffering=0) as file:
        assert os.pread(file.fileno(), MIB, 0) == data
        os.pwrite(file.fileno(), b'written', 4096)
    agent.kill()
    agent = daemon('agent', agent_file).wait_for('Ready')
    expected = bytearray(data)
    expected[4096:4103] = b'written'
    assert pathlib.Path(mirror['path']).read_bytes() == expected
    commit_id, image = str(uuid.uuid4()), str(uuid.uuid4())
    ask.commit(*key, commit_id=commit_id, image_id=image)
    with pytest.raises(client.CommitFailed, match='conductor'):
        ask.wait_for_commit(*key, commit_id, 30)
    daemon('conductor', conductor_file).wait_for('Answering')
    commit_id = str(uuid.uuid4())
    ask.commit(*key, commit_id=commit_id, image_id=image)
    ask.wait_for_commit(*key, commit_id, 30)
    stored = repository.connect(*urls)
    assert b''.join(stored.open(image).stream()) == expected
    ask.release(*key)
    assert agent.stop() == 0


@pytest.fixture
def signing_key(tmp_path):
    """A file that ``lazyimage-conductor`` made, and what it printed."""
    path = tmp_path / 'signing.key'
    made = subprocess.run(
        [sys.executable, '-m', 'nova_lazyimage.cmd.conductor']
        + ['--new-signing-key', str(path)],
        cwd=pathlib.Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert made.returncode == 0, made.stderr
    return path, made.stdout.strip()


def test_an_agent_with_a_public_key_takes_signed_answers_alone(
    tmp_path, urls, conductor_file, agent_file, daemon, signing_key
):
    path, public = signing_key
    assert (tmp_path / 'signing.key.pub').read_text().strip() == public
    repository.connect(*urls).create([os.urandom(MIB)], blob_id='image')
    text = agent_file.read_text()
    agent_file.write_text(
        text.replace('[conductor]\n', f'[conductor]\npublic_keys = {public}\n')
    )
    unsigned = daemon('conductor', conductor_file).wait_for('Answering')
    log = (tmp_path / 'conductor-0.log').read_text()
    assert 'Answers are not signed' in log
    daemon('agent', agent_file).wait_for('Ready')
    ask = client.AgentClient(str(tmp_path / 'run' / 'agent.sock'), 30)
    key = str(uuid.uuid4()), 'disk'
    with pytest.raises(client.RepositoryUnavailable, match='is not signed'):
        ask.attach(*key, clone_blob='image')
    unsigned.stop()
    with conductor_file.open('a') as file:
        file.write(f'signing_key = {path}\n')
    daemon('conductor', conductor_file).wait_for('Answering')
    ask.attach(*key, clone_blob='image')
    ask.release(*key)


def test_a_conductor_whose_key_is_none_does_not_start(
    tmp_path, conductor_file, daemon
):
    with conductor_file.open('a') as file:
        file.write(f'signing_key = {tmp_path}/none\n')
    assert daemon('conductor', conductor_file).process.wait(30) == 1
    log = (tmp_path / 'conductor-0.log').read_text()
    assert f'[conductor] signing_key "{tmp_path}/none"' in log
