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
"""The client loads nothing, waits no longer than told, and names errors."""

import subprocess
import sys
import threading
import time

import pytest

from nova_lazyimage.agent import api
from nova_lazyimage.agent import client
from nova_lazyimage.agent import errors


@pytest.fixture
def serve(tmp_path):
    """A server of some routes, and its client."""
    started = []

    def start(routes, timeout_seconds=10, folder=tmp_path):
        path = str(folder / 'agent.sock')
        server = api.Server(path, routes, None)
        server.start()
        started.append(server)
        return client.AgentClient(path, timeout_seconds)

    yield start
    for server in started:
        server.stop()


def raising(exc):
    def route(request):
        raise exc

    return [('GET', '/v1/status', route)]


def test_it_imports_nothing_but_the_standard_library():
    program = (
        'import sys\n'
        'before = set(sys.modules)\n'
        'import nova_lazyimage.agent.client\n'
        'new = set(sys.modules) - before\n'
        'new = {name.partition(".")[0] for name in new}\n'
        'foreign = new - sys.stdlib_module_names - {"nova_lazyimage"}\n'
        'sys.exit(f"loaded {foreign}" if foreign else 0)\n'
    )
    subprocess.run([sys.executable, '-c', program], check=True)


@pytest.mark.parametrize(
    ('raised', 'expected'),
    [
        (errors.BadRequest('why'), client.BadRequest),
        (errors.PeerForbidden('why'), client.Forbidden),
        (errors.NoSuchMirror('why'), client.NotFound),
        (errors.Conflict('why'), client.Conflict),
        (errors.NotReady('why'), client.RepositoryUnavailable),
        (errors.NoSpace('why'), client.NoSpace),
        (OSError(28, 'why'), client.NoSpace),
    ],
)
def test_an_error_has_its_class_and_message(serve, raised, expected):
    with pytest.raises(expected, match='why'):
        serve(raising(raised)).status()


@pytest.mark.expect_logs('failed')
def test_a_fault_of_the_agent_is_an_error_with_its_name(serve):
    with pytest.raises(client.AgentError, match='RuntimeError') as caught:
        serve(raising(RuntimeError('why'))).status()
    assert caught.value.code == 'InternalError'


def test_no_agent_is_unavailable_and_says_what_to_do(tmp_path):
    agent = client.AgentClient(str(tmp_path / 'agent.sock'), 1)
    with pytest.raises(client.AgentUnavailable, match='start lazyimage-agent'):
        agent.status()


def test_an_agent_that_does_not_answer_in_time_is_unavailable(serve):
    over = threading.Event()

    def route(request):
        over.wait(10)
        return 200, {}

    agent = serve([('GET', '/v1/status', route)], timeout_seconds=0.2)
    started = time.monotonic()
    with pytest.raises(client.AgentUnavailable):
        agent.status()
    assert time.monotonic() - started < 5
    over.set()


def test_a_socket_with_a_very_long_path_is_reached(serve, tmp_path):
    folder = tmp_path / ('x' * 100)
    folder.mkdir()
    agent = serve(
        [('GET', '/v1/status', lambda request: (200, {'ready': True}))],
        folder=folder,
    )
    assert agent.status() == {'ready': True}


def test_a_name_cannot_reach_another_path(serve):
    def show(request):
        return 200, {'ids': request.ids}

    agent = serve([('GET', r'/v1/mirrors/([^/]+)/([^/]+)', show)])
    found = agent.mirror('i', '../x?y#z%2F')
    assert found == {'ids': ['i', '../x?y#z%2F']}


def test_waiting_for_a_commit_outlives_an_agent_that_restarts(serve, tmp_path):
    states = iter([{'state': 'sealed'}, {'state': 'published'}])

    def show(request):
        return 200, next(states)

    routes = [('GET', r'/v1/mirrors/i/d/commits/c', show)]
    agent = client.AgentClient(str(tmp_path / 'agent.sock'), 5)
    timer = threading.Timer(0.5, lambda: serve(routes))
    timer.start()
    seen = []
    done = agent.wait_for_commit('i', 'd', 'c', 20, seen.append)
    timer.join()
    assert done == {'state': 'published'}
    assert [state['state'] for state in seen] == ['sealed', 'published']


def test_waiting_for_a_commit_has_an_end(serve):
    agent = serve(
        [
            (
                'GET',
                r'/v1/mirrors/i/d/commits/c',
                lambda request: (200, {'state': 'sealed'}),
            )
        ]
    )
    with pytest.raises(client.CommitFailed, match='not published') as caught:
        agent.wait_for_commit('i', 'd', 'c', 0.3)
    assert caught.value.code == 'Timeout'
