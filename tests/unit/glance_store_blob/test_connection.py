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
"""When a repository is connected to, and when it is not."""

import os
import threading
import types

import pytest

from glance_store_blob import conf
from glance_store_blob import connection
from glance_store_blob import errors
from lazyblob import exceptions as lazy

SETTINGS = conf.Settings('file:///c', 'sqlite:////c', None, 2, 524288)


@pytest.fixture
def connects(monkeypatch):
    """Each attempt to connect; ``error`` is what it ends in."""
    state = types.SimpleNamespace(count=0, error=None)

    class Repository:
        @property
        def info(self):
            state.count += 1
            if state.error:
                raise state.error
            return types.SimpleNamespace(uuid='the-uuid')

    monkeypatch.setattr(
        connection.repository, 'connect', lambda *_, **__: Repository()
    )
    return state


def make(check=lambda uuid: None):
    return connection.Connection(SETTINGS, check)


def test_making_a_connection_connects_to_nothing(connects):
    assert make().uuid is None
    assert connects.count == 0


def test_it_is_connected_to_once_by_many_threads(connects):
    made = make()
    got = []
    threads = [
        threading.Thread(target=lambda: got.append(made.get()))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 8
    assert len(set(map(id, got))) == 1
    assert connects.count == 1
    assert made.uuid == 'the-uuid'


def test_a_failure_is_told_at_once_for_a_while_and_then_tried_again(
    connects, monkeypatch
):
    now = [1000.0]
    monkeypatch.setattr(connection.time, 'monotonic', lambda: now[0])
    connects.error = lazy.CatalogUnavailable('away')
    made = make()
    for _ in range(3):
        with pytest.raises(errors.Unavailable, match='away'):
            made.get()
    assert connects.count == 1
    connects.error = None
    now[0] += connection.PAUSE_SECONDS
    made.get()
    assert connects.count == 2


def test_a_repository_that_is_refused_is_not_used(connects):
    def refuse(uuid):
        raise errors.Unavailable(message=f'not {uuid}')

    made = make(refuse)
    with pytest.raises(errors.Unavailable, match='not the-uuid'):
        made.get()
    assert made.uuid is None


def test_a_forked_process_connects_anew(connects, monkeypatch):
    made = make()
    before = made.get()
    monkeypatch.setattr(connection.os, 'getpid', lambda: os.getppid())
    assert made.get() is not before
    assert connects.count == 2
