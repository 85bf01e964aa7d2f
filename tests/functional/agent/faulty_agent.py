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
"""``lazyimage-agent`` whose store and catalog fail when a test says so.

The agent is the real one; only what it connects to is wrapped. Files in the
folder ``$AGENT_FAULTS`` are the test's words:

``store-away``
    every fetch and every put fails as a store does that is not reached
``store-hangs``
    fetches and puts do not return until the file is gone
``catalog-away``
    every call fails before it is made
``commit-slow-end``
    what a COMMIT does after its version stands takes as many seconds as the
    file says
``clone-overtaken``
    somebody who reads the bus makes the clone before the agent does, and
    publishes to it the root that the file says
``catalog-mute``
    the next publish is done and its answer lost, and so is every call until
    the file is gone
``count-gets``
    the digest of every object that is read is a line in it
``store-slow``
    every put takes as many seconds as the file says
``engine-step``
    with dying.c preloaded: the agent dies at the N-th call that the engine
    makes on a mirror's files from the next seal on, before or after it; its
    name is found in ``engine-stepped``
``step``
    ``N kill``: the agent is killed at the N-th step of a COMMIT that it
    reaches from now on, before or after what the step does; ``N fail``: what
    the step does fails. The file goes when that happened, and its line is
    found in ``stepped``
"""

import ctypes
import errno
import os
import pathlib
import signal
import sys
import threading
import time

from lazyblob import exceptions
from nova_lazyimage.agent import state
from nova_lazyimage.cmd import agent

FAULTS = pathlib.Path(os.environ['AGENT_FAULTS'])


def is_told(name):
    return (FAULTS / name).exists()


STEPS = threading.Lock()


def step(name, failure):
    """Something that a COMMIT does; a test may have it end here."""
    with STEPS:
        try:
            count, action = (FAULTS / 'step').read_text().split()
        except FileNotFoundError:
            return
        if action == 'fail' and failure is None:
            return
        left = int(count) - 1
        if left:
            (FAULTS / 'step').write_text(f'{left} {action}')
            return
        (FAULTS / 'stepped').write_text(name)
        (FAULTS / 'step').unlink()
        if action == 'kill':
            os.kill(os.getpid(), signal.SIGKILL)
        raise failure


def around(name, failure_before, failure_after, method):
    """Two steps around a call; after it only some failures are possible."""

    def call(*args, **kwargs):
        step(f'before {name}', failure_before)
        answer = method(*args, **kwargs)
        step(f'after {name}', failure_after)
        return answer

    return call


def armed(seal):
    """The engine's own steps begin to count."""

    def call(*args, **kwargs):
        told = FAULTS / 'engine-step'
        if told.exists():
            count = int(told.read_text())
            told.unlink()
            report = os.fsencode(FAULTS / 'engine-stepped')
            ctypes.CDLL(None).die_after(ctypes.c_long(count), report)
        return seal(*args, **kwargs)

    return call


def no_space():
    return OSError(errno.ENOSPC, 'told to have no room', 'a file')


def overtake(catalog, source, number, *, blob_id, **more):
    """What another host could do that sees the request for a clone."""
    version = catalog.clone(source, number, blob_id=blob_id, **more)
    catalog.begin_session('thief', blob_id)
    catalog.publish(
        blob_id,
        epoch=catalog.claim(blob_id, 'thief'),
        parent=version.number,
        commit_id='theft',
        root=(FAULTS / 'clone-overtaken').read_text(),
        size_bytes=version.size_bytes,
        session_id=blob_id,
        secret='thief',
        drop_parent=True,
    )


class Wrapped:
    def __init__(self, inner):
        self._inner = inner

    def __getattr__(self, name):
        found = getattr(self._inner, name)
        if name.startswith('_') or not callable(found):
            return found

        def call(*args, **kwargs):
            return self._call(name, found, args, kwargs)

        return call


class Store(Wrapped):
    def _call(self, name, method, args, kwargs):
        if is_told('store-away'):
            raise exceptions.TemporaryStoreError('told to be away')
        while is_told('store-hangs'):
            time.sleep(0.01)
        if name == 'get' and is_told('count-gets'):
            with (FAULTS / 'count-gets').open('a') as file:
                file.write(f'{args[0].hex()}\n')
            # Long enough for others to ask for the same.
            time.sleep(0.02)
        if name == 'put' and is_told('store-slow'):
            time.sleep(float((FAULTS / 'store-slow').read_text()))
        if name in ('put', 'has', 'sync'):
            full = exceptions.StoreFull('told to be full')
            method = around(f'store.{name}', full, full, method)
        return method(*args, **kwargs)


class Catalog(Wrapped):
    def _call(self, name, method, args, kwargs):
        if is_told('catalog-away'):
            raise exceptions.CatalogUnavailable('told to be away')
        if is_told('catalog-mute') and name in ('publish', 'claim'):
            if name == 'publish':
                method(*args, **kwargs)
            raise exceptions.CatalogUnavailable('told to be mute')
        if name == 'clone' and is_told('clone-overtaken'):
            overtake(self._inner, *args, **kwargs)
        if name in ('begin_session', 'publish', 'mint_location'):
            refused = exceptions.Conflict('told to refuse')
            lost = exceptions.CatalogUnavailable('told to lose an answer')
            method = around(f'catalog.{name}', refused, lost, method)
        return method(*args, **kwargs)


def slow(close):
    def slowly(*args):
        if is_told('commit-slow-end'):
            time.sleep(float((FAULTS / 'commit-slow-end').read_text()))
        return close(*args)

    return slowly


def main():
    connect = agent.connect

    def connect_wrapped(*args, **kwargs):
        # Not before the agent does it, after guests are served.
        from lazyblob import commit
        from lazyblob import repository
        from nova_lazyimage.agent import commits

        found = connect(*args, **kwargs)
        commits.Commits._seal = staticmethod(
            armed(around('seal', no_space(), None, commits.Commits._seal))
        )
        commit.Commit.close = slow(commit.Commit.close)
        return repository.Repository(
            Store(found.store), Catalog(found.catalog)
        )

    agent.connect = connect_wrapped
    state.replace = around('write', no_space(), no_space(), state.replace)
    sys.exit(agent.main())


if __name__ == '__main__':
    main()
