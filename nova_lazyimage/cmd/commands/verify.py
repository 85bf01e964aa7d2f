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
"""``lazyimage verify``: see that what is stored can be read back."""

import argparse
import itertools
import json
import re
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from lazyblob import exceptions
from nova_lazyimage.cmd import console

if TYPE_CHECKING:
    from lazyblob import damage
    from lazyblob import repository
    from lazyblob import verifying

_DAY_SECONDS = 86400


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        'verify',
        help='see that what is stored can be read back',
        description='Go from the catalog through the manifests to the '
        'chunks, of one version or of all of every blob, and see that each '
        'chunk is there with a length that can be; with --read-data read it '
        'back and check its digest. Each is read once, however many versions '
        'share it. What is damaged or missing is told on standard error with '
        'all that it hits, and listed in the catalog, so that writers '
        'overwrite it and "lazyimage repair" finds it; the exit status is 1.',
    )
    parser.add_argument('name', metavar='NAME[@VERSION]', nargs='?')
    add_depth(parser)
    parser.add_argument(
        '--subset',
        metavar='N/M',
        help='read only the N-th of M parts of the chunks, and look at the '
        'others: M runs read everything; "today/M" is another part each day',
    )
    parser.add_argument(
        '--limit-mib',
        type=int,
        metavar='N',
        help='read at most so many MiB a second from the store',
    )
    parser.add_argument(
        '--unreferenced',
        action='store_true',
        help='list what the store has and no version refers to: leavings of '
        'crashes, or of a writer at work; no damage',
    )
    console.add_format(parser)
    console.teach(
        parser,
        'lazyimage verify',
        'lazyimage verify debian@3 --read-data',
        'lazyimage verify --read-data --subset today/30 --limit-mib 50',
        'lazyimage verify --unreferenced --json',
    )
    parser.set_defaults(run=run)


def add_depth(parser: argparse.ArgumentParser) -> None:
    """What verify and repair look at, and how."""
    parser.add_argument(
        '--read-data',
        action='store_true',
        help='read every chunk and check its digest',
    )
    parser.add_argument(
        '--threads',
        type=int,
        metavar='N',
        help='read so many objects at once (default: as suits the store)',
    )


def run(arguments: argparse.Namespace) -> int:
    """:raises InvalidConfiguration: options that contradict one another"""
    wanted = options(arguments)
    if arguments.unreferenced and arguments.name:
        raise exceptions.InvalidConfiguration(
            f'--unreferenced is of the whole repository; leave out '
            f'"{arguments.name}"'
        )
    repo = console.connect(arguments)
    blob_id, number = target(repo, arguments.name)
    with Steps() as steps:
        report = repo.verify(blob_id, number, wanted, steps)
    as_json = arguments.output_format == 'json'
    teller = Teller(repo, is_silent=as_json)
    found = teller.tell(report.problems())
    fields = summary(report, teller)
    if as_json:
        more: dict[str, Any] = {'damage': found}
        if arguments.unreferenced:
            more['unreferenced'] = [
                {'digest': name.hex(), 'stored_bytes': size_bytes}
                for name, size_bytes in report.unreferenced()
            ]
        print(json.dumps({**fields, **more}))
    else:
        if arguments.unreferenced:
            for name, size_bytes in report.unreferenced():
                print(name.hex(), size_bytes)
        console.show_fields(arguments, fields)
    return int(not report.is_sound)


def options(arguments: argparse.Namespace) -> 'verifying.Options':
    """As the command line says. :raises InvalidConfiguration:"""
    from lazyblob import pacing
    from lazyblob import verifying

    if arguments.threads is not None:
        at_least_one('--threads', arguments.threads)
    part, pace = None, None
    if arguments.subset is not None:
        if not arguments.read_data:
            raise exceptions.InvalidConfiguration(
                f'--subset "{arguments.subset}" is of what is read; give '
                f'--read-data, too'
            )
        part = subset(arguments.subset)
    if arguments.limit_mib is not None:
        at_least_one('--limit-mib', arguments.limit_mib)
        pace = pacing.Pace(arguments.limit_mib << 20)
    return verifying.Options(
        reads_data=arguments.read_data,
        subset=part,
        threads=arguments.threads,
        pace=pace,
        reporter=reporter(arguments.command),
    )


def at_least_one(name: str, value: int) -> None:
    """:raises InvalidConfiguration: an option's number is not"""
    if value < 1:
        raise exceptions.InvalidConfiguration(
            f'{name} is "{value}"; it must be at least 1'
        )


def subset(text: str) -> 'verifying.Subset':
    """``N/M`` or ``today/M``. :raises InvalidConfiguration:"""
    from lazyblob import verifying

    found = re.fullmatch(r'(\d{1,9}|today)/(\d{1,9})', text, re.ASCII)
    parts = int(found[2]) if found else 0
    number = 0
    if found and parts:
        number = (
            int(time.time()) // _DAY_SECONDS % parts + 1
            if found[1] == 'today'
            else int(found[1])
        )
    if not 1 <= number <= parts:
        raise exceptions.InvalidConfiguration(
            f'--subset is "{text}"; it must be N/M with N from 1 to M, or '
            f'"today/M"'
        )
    return verifying.Subset(number, parts)


def reporter(command: str) -> str:
    """Who reports bad digests."""
    from lazyblob import sessions

    return f'{command} on {sessions.default_owner()}'


def target(
    repo: 'repository.Repository', name: str | None
) -> tuple[str | None, int | None]:
    """Blob id and version of ``NAME[@VERSION]``; None: all."""
    if name is None:
        return None, None
    blob, version = console.find(repo, name)
    return blob.id, version.number


def summary(
    report: 'verifying.Report', teller: 'Teller'
) -> dict[str, int | None]:
    """What was looked at, in figures."""
    return {
        'versions': report.version_count,
        'objects': report.object_count,
        'chunks': report.chunk_count,
        'read_bytes': report.read_bytes,
        'bad_objects': len(report.faults),
        'damaged_versions': teller.version_count,
        'unreferenced_objects': report.unreferenced_objects,
        'unreferenced_bytes': report.unreferenced_bytes,
    }


class Steps:
    """A line of progress for each step, which replaces the one before."""

    def __init__(self) -> None:
        self._step = ''
        self._line: console.Progress | None = None

    def __call__(self, step: str, done: int, total: int | None) -> None:
        if step != self._step:
            self.__exit__()
            self._step = step
            self._line = console.Progress(step, total, 'objects')
        assert self._line is not None  # noqa: S101 - made above
        self._line(done)

    def __enter__(self) -> 'Steps':
        return self

    def __exit__(self, *_: object) -> None:
        if self._line is not None:
            self._line.__exit__()


class Teller:
    """Tells what cannot be read, with blobs' names.

    :param is_silent: only collect it
    :ivar version_count: versions that were told of
    """

    def __init__(
        self, repo: 'repository.Repository', *, is_silent: bool
    ) -> None:
        self.version_count = 0
        self._repo = repo
        self._is_silent = is_silent

    def tell(
        self, problems: Iterable['damage.Problem']
    ) -> list[dict[str, Any]]:
        """A line for each range on standard error; or answer all of them."""
        found = []
        for (blob_id, version), group in itertools.groupby(
            problems, lambda problem: (problem.blob_id, problem.version)
        ):
            self.version_count += 1
            name = self._name(blob_id)
            if self._is_silent:
                found += [row(name, problem) for problem in group]
                continue
            for start, end, reason in ranges(group):
                print(
                    f'{name}@{version}: bytes {start} to {end - 1}: {reason}',
                    file=sys.stderr,
                )
        return found

    def _name(self, blob_id: str) -> str:
        try:
            return self._repo.catalog.get(blob_id).name or blob_id
        except exceptions.NotFound:
            return blob_id


def row(name: str, problem: 'damage.Problem') -> dict[str, Any]:
    """A problem for programs."""
    return {
        'name': name,
        'id': problem.blob_id,
        'version': problem.version,
        'offset': problem.offset,
        'length_bytes': problem.length_bytes,
        'kind': problem.kind,
        'digest': problem.digest,
        'reason': problem.reason,
    }


def ranges(
    problems: Iterable['damage.Problem'],
) -> Iterator[tuple[int, int, str]]:
    """Begin, end and reason; neighbours with one reason are one range."""
    start = end = count = 0
    last: damage.Problem | None = None
    for problem in problems:
        if last is not None and not (
            problem.offset == end
            and (problem.kind, problem.reason) == (last.kind, last.reason)
        ):
            yield start, end, _said(last, count)
            last = None
        if last is None:
            start, count = problem.offset, 0
        last, end = problem, problem.offset + problem.length_bytes
        count += 1
    if last is not None:
        yield start, end, _said(last, count)


def _said(problem: 'damage.Problem', count: int) -> str:
    if count > 1:
        return f'{count} {problem.kind}s, each: {problem.reason}'
    return f'{problem.kind} "{problem.digest}": {problem.reason}'
