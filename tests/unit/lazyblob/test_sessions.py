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
"""A writer's session stands while it asks the store, and no longer."""

import random

import pytest

from lazyblob import exceptions
from lazyblob.catalog import api

CHUNK = 4096
DATA = random.Random(1).randbytes(5 * CHUNK)


class Watched:
    """A store that notes how many sessions are open at each call."""

    def __init__(self, inner, catalog):
        self._inner, self._catalog = inner, catalog
        self.calls = []
        self.failing = ''

    def __getattr__(self, name):
        inner = getattr(self._inner, name)

        def call(*arguments, **more):
            self.calls.append((name, len(self._catalog.sessions())))
            if name == self.failing:
                raise exceptions.StoreFull('made for this test')
            return inner(*arguments, **more)

        return call


@pytest.fixture
def store(repo):
    repo.store = Watched(repo.store, repo.catalog)
    return repo.store


def create(repo, blob_id='image'):
    return repo.create([DATA], blob_id=blob_id, chunk_size_bytes=CHUNK)


def test_it_stands_from_before_the_first_question_until_publish(repo, store):
    create(repo)
    names = {name for name, _ in store.calls}
    assert {'put', 'sync'} <= names
    assert {count for _, count in store.calls} == {1}
    assert repo.catalog.sessions() == []


def test_it_ends_with_a_failure_too(repo, store):
    store.failing = 'sync'
    with pytest.raises(exceptions.StoreFull):
        create(repo)
    assert repo.catalog.sessions() == []


def test_it_stands_while_a_version_is_added(repo, store):
    create(repo)
    blob = repo.catalog.get('image')
    parent = repo.manifest(repo.catalog.version('image').root)
    store.calls.clear()
    with repo.commit(blob, parent, size_bytes=len(DATA)) as target:
        target.put(1, random.Random(2).randbytes(CHUNK))
        root = target.finish()
        repo.catalog.publish(
            'image',
            epoch=1,
            parent=1,
            commit_id='c',
            root=root,
            size_bytes=len(DATA),
            session_id=target.session_id,
        )
    assert store.calls
    assert {count for _, count in store.calls} == {1}
    assert repo.catalog.sessions() == []


def test_one_that_somebody_ended_publishes_nothing(repo, store):
    """As the collector does with those whose owner is gone."""
    sync = store._inner.sync

    def end_first(*arguments):
        for session in repo.catalog.sessions():
            repo.catalog.end_session(session.id)
        return sync(*arguments)

    store._inner.sync = end_first
    with pytest.raises(exceptions.Conflict, match='session'):
        create(repo)
    assert [v for v in repo.catalog.list_versions()] == []
    assert repo.catalog.get('image').state is api.State.ACTIVE
