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
"""Places for repositories on real engines, and judging what is there.

A :class:`Trial` lets one operation die or fail at a point, then looks whether
anything is lost, repeats it, and looks again.
"""

import collections
import contextlib
import itertools
import os
import pathlib
import time

import dying
import gateway as gateways
import operations

from lazyblob import exceptions

#: Every combination, every point: for "make soak".
IS_LONG = 'LAZYIMAGE_SOAK_SECONDS' in os.environ
_NUMBERS = itertools.count(1)


class Engines:
    """A kind of chunk store and a kind of catalog.

    :param store: ``files``, ``stripes`` or ``bucket``
    :param server: of the catalogs; None: SQLite
    """

    def __init__(self, folder, store, *, gateway=None, server=None):
        self.folder = pathlib.Path(folder)
        self.store = store
        self._gateway = gateway
        self._server = server
        self._shared = None
        self._repo = None

    def empty(self):
        """A place where no repository is yet."""
        name = f'place_{next(_NUMBERS)}_{time.time_ns()}'
        folder = self.folder / name
        folder.mkdir()
        settings = None
        if self.store == 'bucket':
            chunk_store = f's3://{gateways.BUCKET}/{name}/chunks'
            settings = {
                'endpoint': self._gateway.endpoint,
                'access_key_id': gateways.USER[1],
                'secret_access_key': gateways.USER[2],
            }
        else:
            disks = 'abc' if self.store == 'stripes' else 'a'
            chunk_store = 'file://' + ','.join(
                str(folder / disk) for disk in disks
            )
        catalog = f'sqlite:///{folder}/catalog.sqlite'
        if self._server is not None:
            catalog = self._server.create(name)
        return dying.Place(chunk_store, catalog, str(folder), settings)

    def shared(self):
        """A repository that operations share; each tidies up."""
        if self._shared is None:
            self._shared = self.empty()
            self._repo = self._shared.initialise()
        return self._shared

    @contextlib.contextmanager
    def opened(self, place):
        """The repository at a place; the shared one stays open."""
        if place is self._shared:
            yield self._repo
            return
        repo = place.connect()
        yield repo
        repo.close()

    def close(self):
        """Leave the shared repository; there will be another."""
        if self._repo is not None:
            self._repo.close()
        self._shared = self._repo = None


def strays(folder):
    """What lies among the objects of folders and is none."""
    return [
        pathlib.Path(place, name)
        for place, _folders, names in os.walk(folder)
        for name in names
        if name.startswith('.new-')
    ]


def leave_room(folder, ballast, size_bytes):
    """Fill a file system up to so many bytes."""
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    with open(ballast, 'wb') as file:
        os.posix_fallocate(file.fileno(), 0, free - size_bytes)


class Trial:
    """One operation, again and again, each time with another fate."""

    def __init__(self, engines, name):
        self.engines = engines
        self.name = name
        self.trace = self.play().trace

    def run(self, place, key, where=None, act=''):
        """Let it meet its fate at a point; None: none."""
        raise NotImplementedError

    def points(self, most):
        """The points of the trace, at most so many of each name.

        A point is a name and a number. Which disks of several are asked and
        synced depends on the digests: of those only the first is sure.
        """
        chosen = []
        for name, count in collections.Counter(self.trace).items():
            if name == 'file.syncfs':
                count = 1
            few = min(count, most)
            step = (count - 1) / max(few - 1, 1)
            chosen += [[name, 1 + round(step * k)] for k in range(few)]
        return chosen

    def changes(self, most):
        """Those before which something would change."""
        return [
            point for point in self.points(most) if not dying.is_read(point[0])
        ]

    def play(self, where=None, act=''):
        """Run it, judge, repeat it, judge; how it ended."""
        try:
            return self._play(where, act)
        except BaseException:
            # Nobody else is to be judged by what this one left.
            self.engines.close()
            raise

    def _play(self, where, act):
        operation = operations.OPERATIONS[self.name]()
        key = f'k{next(_NUMBERS)}'
        if operation.needs_empty:
            place = self.engines.empty()
            operation.prepare(place, key)
        else:
            place = self.engines.shared()
            operation.folder = place.folder
            with self.engines.opened(place) as repo:
                operation.prepare(repo, key)
        outcome = self.run(place, key, where, act)
        is_over = outcome.error is None and not outcome.was_killed
        if not is_over and not operation.needs_empty:
            # Nothing is lost, and what is left over is no version's.
            with self.engines.opened(place) as repo:
                operations.audit(repo, operation.damaged)
                self._check_sessions(repo, outcome, where)
        if not is_over or where is None:
            again = self.run(place, key)
            assert again.error is None, (where, act, outcome, again.error)
            assert not is_over or again.answer == outcome.answer
        else:
            again = outcome
        with self.engines.opened(place) as repo:
            left = operations.unreferenced(repo)
            assert not left or operation.leaves_garbage, (where, act, outcome)
            operation.check(repo, key, again.answer)
            operations.audit(repo)
            self._tidy(repo, place, key)
        return outcome

    def _check_sessions(self, repo, outcome, where):
        """Who failed and lives has ended his."""
        if not outcome.was_killed and where[0] not in (
            'catalog.begin_session',
            'catalog.end_session',
        ):
            assert repo.catalog.sessions() == [], outcome

    def _tidy(self, repo, place, key):
        """As the collector will."""
        for blob in repo.catalog.list_blobs():
            for secret in ('', 'secret', f'secret-{key}'):
                try:
                    repo.delete(blob.id, secret=secret)
                    break
                except exceptions.Forbidden:
                    continue
        for session in repo.catalog.sessions():
            repo.catalog.end_session(session.id)
        for name in operations.unreferenced(repo):
            repo.store.delete(name)
        assert list(repo.store.list()) == []
        # Only a replacement has a name before it has its own.
        most = {'Again': 1, 'Repair': 2}.get(self.name, 0)
        found = strays(place.folder)
        assert len(found) <= most, found
        for path in found:
            path.unlink()


class Forked(Trial):
    """In a process of its own, which dies, or one of whose calls fails.

    :param families: of points (``dying.Points``)
    """

    def __init__(self, engines, stage, name, families):
        self._stage = stage
        self._families = families
        super().__init__(engines, name)

    def run(self, place, key, where=None, act=''):
        return self._stage.run(
            *(self.name, place, key),
            families=self._families,
            where=where,
            act=act,
        )


class Disturbed(Trial):
    """A bucket behind a proxy: a point is a request.

    :param more: settings of the store
    """

    def __init__(self, engines, proxy, name, **more):
        self._proxy = proxy
        self._more = more
        super().__init__(engines, name)

    def run(self, place, key, where=None, act=''):
        nth = where[1] if where else 0
        self._proxy.follow(lambda number: act if number == nth else '')
        world = dying.Disturbed(
            place, {'endpoint': self._proxy.endpoint, **self._more}
        )
        operation = operations.OPERATIONS[self.name]()
        outcome = dying.Outcome([], was_killed=False)
        try:
            outcome.answer = operation.run(world, key)
        except exceptions.LazyBlobError as exc:
            outcome.error = [type(exc).__name__, str(exc)]
        finally:
            world.close()
        outcome.trace = ['request'] * self._proxy.count
        return outcome
