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
"""Processes that die, or whose calls fail, at the n-th point of an operation.

A *point* lies before each call that leaves the process: of the chunk store
and the catalog (the steps of lazyblob/CRASHES.rst), of the system on a file,
a statement or a commit of the database. Nothing of lazyblob knows of it: what
it calls is wrapped here.

As a program this reads jobs, a line of JSON each, and forks a process for
each, which has everything loaded and nothing connected. :class:`Stage` is the
other end.
"""

import collections
import dataclasses
import errno
import functools
import json
import logging
import os
import pathlib
import signal
import subprocess
import sys
import threading

import operations
import sqlalchemy as sa

from lazyblob import conf
from lazyblob import exceptions
from lazyblob import plugins
from lazyblob import repository
from lazyblob.catalog import schema
from lazyblob.chunk_store import file

KINDS = ('chunk', 'node', 'descriptor')
#: Steps that change nothing; a point after one is the point before it.
READS = {
    *('store.has', 'store.get', 'store.list', 'store.close'),
    *('catalog.repository', 'catalog.get', 'catalog.find'),
    *('catalog.list_blobs', 'catalog.version', 'catalog.versions'),
    *('catalog.list_versions', 'catalog.clones', 'catalog.find_commit'),
    *('catalog.sessions', 'catalog.bad_digests', 'catalog.close'),
    *('catalog.received', 'store.get_parts'),
}
_CHANGING = ('ALTER', 'CREATE', 'DELETE', 'DROP', 'INSERT', 'UPDATE')
_CREATING = os.O_CREAT | (os.O_TMPFILE & ~os.O_DIRECTORY)
_FILE_CALLS = {
    **{'pread': 'read', 'writev': 'write', 'pwrite': 'write'},
    **{'fchmod': 'mode', 'chmod': 'mode', 'link': 'link'},
    **{'replace': 'rename', 'rename': 'rename', 'unlink': 'unlink'},
    **{'mkdir': 'mkdir', 'fsync': 'sync', 'ftruncate': 'truncate'},
}


def is_read(name):
    return name in READS or name in ('file.read', 'sql.read')


class Points:
    """Counts them, tells their names, and acts at one of them.

    :param families: those that count: ``calls``, ``file``, ``statement``,
        ``commit``
    :param where: the name of the point at which to act, and which of those
        of its name, from 1 on; None: nowhere
    :param act: ``kill``, a name of ``errno``, ``temporary``, ``full``,
        ``denied``, or ``lost``: the call is done, and fails all the same
    """

    def __init__(self, families, where, act, tell):
        self.families = families
        self.where, self.act = where, act
        self._counts = collections.Counter()
        self._lock = threading.Lock()
        self._tell = tell

    def arrive(self, family, name):
        """What befalls this call, or ''."""
        if family not in self.families:
            return ''
        with self._lock:
            self._counts[name] += 1
            here = [name, self._counts[name]]
            self._tell(name)
        if here != self.where:
            return ''
        if self.act == 'kill':
            os.kill(os.getpid(), signal.SIGKILL)
        return self.act

    def wrap(self, family, name_of, real):
        """A call with a point before it."""

        @functools.wraps(real)
        def call(*arguments, **keywords):
            name = name_of(*arguments)
            act = self.arrive(family, name)
            if act == 'lost':
                real(*arguments, **keywords)
            if act:
                raise failure(name, act)
            return real(*arguments, **keywords)

        return call


def failure(name, act):
    """The error by which a call fails."""
    number = getattr(errno, act, None)
    if number is not None:
        return OSError(number, os.strerror(number))
    what = f'{name} failed for this test'
    if name.startswith('catalog.'):
        return exceptions.CatalogUnavailable(what)
    return {
        'full': exceptions.StoreFull,
        'denied': exceptions.StoreDenied,
    }.get(act, exceptions.TemporaryStoreError)(what)


class Wrapped:
    """A store or a catalog whose every call has a point."""

    def __init__(self, inner, part, points):
        self._inner = inner
        self._part = part
        self._points = points

    def __getattr__(self, name):
        found = getattr(self._inner, name)
        if not callable(found) or name.startswith('_'):
            return found

        def name_of(*arguments):
            if self._part == 'store' and name in ('put', 'replace'):
                # Objects open with a header that says what they are.
                return f'{KINDS[bytes(arguments[1][:7])[6]]}.{name}'
            return f'{self._part}.{name}'

        return self._points.wrap('calls', name_of, found)


def watch(points):
    """Wrap, in this process, whatever is a point."""
    for part in ('store', 'catalog'):
        name = 'chunk_store' if part == 'store' else part
        real = getattr(plugins, name)

        def opened(*arguments, part=part, real=real, **keywords):
            return Wrapped(real(*arguments, **keywords), part, points)

        setattr(plugins, name, opened)
    schema.initialise = points.wrap(
        'calls', lambda *_: 'catalog.initialise', schema.initialise
    )
    for name, told in _FILE_CALLS.items():
        wrapped = points.wrap(
            'file', lambda *_, told=told: f'file.{told}', getattr(os, name)
        )
        setattr(os, name, wrapped)
    os.open = points.wrap('file', _name_of_open, os.open)
    file._sync_file_system = points.wrap(
        'file', lambda *_: 'file.syncfs', file._sync_file_system
    )
    sa.event.listen(
        sa.Engine,
        'before_cursor_execute',
        lambda _connection, _cursor, statement, *_: points.arrive(
            'statement', _name_of_statement(statement)
        ),
    )
    sa.event.listen(
        sa.Engine, 'commit', lambda *_: points.arrive('commit', 'sql.commit')
    )


def _name_of_statement(statement):
    verb = statement.split(None, 1)[0].upper()
    return 'sql.change' if verb in _CHANGING else 'sql.read'


def _name_of_open(_path, flags, *_):
    return 'file.open' if flags & _CREATING else 'file.read'


@dataclasses.dataclass
class Place:
    """Where a repository is, as a job tells it.

    :ivar settings: of the bucket, by the names of ``conf.S3Settings``
    :ivar folder: for files beside the repository
    """

    chunk_store: str
    catalog: str
    folder: str
    settings: dict | None = None
    is_moved: bool = False

    @property
    def _store_settings(self):
        if self.settings is None:
            return None
        return {'s3': conf.S3Settings(**self.settings)}

    def connect(self, **more):
        settings = self._store_settings
        if settings and more:
            settings = {'s3': conf.S3Settings(**(self.settings | more))}
        return repository.connect(
            self.chunk_store, self.catalog, store_settings=settings
        )

    def environment(self):
        """The bucket's settings, as every S3 tool takes them."""
        names = {
            'endpoint': 'AWS_ENDPOINT_URL',
            'access_key_id': 'AWS_ACCESS_KEY_ID',
            'secret_access_key': 'AWS_SECRET_ACCESS_KEY',
        }
        return {
            names[key]: value for key, value in (self.settings or {}).items()
        }

    def initialise(self):
        return repository.initialise(
            self.chunk_store,
            self.catalog,
            store_settings=self._store_settings,
            is_moved=self.is_moved,
        )


class Disturbed:
    """A place, reached with other settings; see ``operations``."""

    def __init__(self, place, more):
        self.folder = place.folder
        self._place, self._more = place, more
        self._repo = None

    def connect(self):
        self._repo = self._place.connect(**self._more)
        return self._repo

    def close(self):
        self._repo.close()


def _work(job, told):
    """In the child: the operation, and what came of it."""
    real_write = os.write

    def tell(line):
        real_write(told, f'{line}\n'.encode())

    logging.disable()
    points = Points(job['families'], job['where'], job['act'], tell)
    watch(points)
    operation = operations.OPERATIONS[job['operation']]()
    try:
        found = operation.run(Place(**job['place']), job['key'])
    except Exception as exc:
        tell('!' + json.dumps([type(exc).__name__, str(exc)]))
    else:
        tell('=' + json.dumps(found))


def _main():
    # What looks for plugins keeps what it found in files of its own.
    for load, url in (
        (plugins.chunk_store, 'file:///nowhere'),
        (plugins.chunk_store, 's3://nowhere'),
        (plugins.catalog, 'sqlite:////nowhere'),
        (plugins.catalog, 'mysql+pymysql://nowhere/nothing'),
        (plugins.catalog, 'postgresql+psycopg://nowhere/nothing'),
    ):
        load(url)
    for line in sys.stdin:
        job = json.loads(line)
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.close(reading)
            status = 1
            try:
                _work(job, writing)
                status = 0
            finally:
                os._exit(status)
        os.close(writing)
        with open(reading, encoding='utf-8') as source:
            told = source.read().splitlines()
        _pid, status = os.waitpid(child, 0)
        answer = {'told': told, 'status': os.waitstatus_to_exitcode(status)}
        sys.stdout.write(json.dumps(answer) + '\n')
        sys.stdout.flush()


@dataclasses.dataclass
class Outcome:
    """How a process ended.

    :ivar trace: the names of the points that it reached
    :ivar answer: what the operation answered, or None
    :ivar error: the name and the text of what it raised, or None
    """

    trace: list
    was_killed: bool
    answer: object = None
    error: list | None = None


class Stage:
    """Runs operations in processes of their own; used in a ``with``."""

    def __enter__(self):
        path = [str(pathlib.Path(__file__).parent), *sys.path]
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding='utf-8',
            env={**os.environ, 'PYTHONPATH': os.pathsep.join(path)},
        )
        return self

    def __exit__(self, *unused):
        self._process.stdin.close()
        self._process.wait()

    def run(self, operation, place, key, *, families, where=None, act=''):
        job = {
            'operation': operation,
            'place': dataclasses.asdict(place),
            'key': key,
            'families': families,
            'where': where,
            'act': act,
        }
        self._process.stdin.write(json.dumps(job) + '\n')
        self._process.stdin.flush()
        found = json.loads(self._process.stdout.readline())
        outcome = Outcome([], found['status'] == -signal.SIGKILL)
        for line in found['told']:
            if line.startswith('='):
                outcome.answer = json.loads(line[1:])
            elif line.startswith('!'):
                outcome.error = json.loads(line[1:])
            else:
                outcome.trace.append(line)
        assert outcome.was_killed or found['status'] == 0, found
        return outcome


if __name__ == '__main__':
    _main()
