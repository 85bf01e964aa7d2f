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
import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lazyblob import exceptions
from nova_lazyimage.cmd import console

if TYPE_CHECKING:
    from lazyblob import copying
    from lazyblob import repository
    from lazyblob.catalog import api

COLUMNS = (
    'name',
    'version',
    'size_bytes',
    'outcome',
    'copied_objects',
    'copied_bytes',
)
#: A version, and its blob as it is to be there.
Wanted = tuple['api.Version', 'api.Blob']


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        'copy',
        help='copy blobs to another repository',
        description='Copy blobs with all their versions, or with '
        'NAME@VERSION one version, to another repository, which "lazyimage '
        'init" has made. Only what it lacks travels, as it lies in the '
        'store, and is checked by its digest on the way. Ids, version '
        'numbers, times and origins stay. Repeating it, also after it was '
        'killed, goes on with what is missing. If a version is damaged here '
        'or cannot be taken in there, that is told on standard error, the '
        'others are copied, and the exit status is 1.',
    )
    parser.add_argument('names', metavar='NAME[@VERSION]', nargs='*')
    parser.add_argument('--all', action='store_true', help='every blob')
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument(
        '--to', metavar='URL', help='the other repository: file:///folder'
    )
    target.add_argument(
        '--to-config-file',
        metavar='FILE',
        help='the other repository is the one of [repository] in this file',
    )
    parser.add_argument(
        '--as',
        dest='new_name',
        metavar='NAME',
        help='name of the copy, which then has an id of its own (one blob '
        'only)',
    )
    parser.add_argument(
        '--project', help='owning project there (default: as here)'
    )
    parser.add_argument(
        '--dry-run',
        action='store_true',
        help='change nothing; tell how much would travel',
    )
    parser.add_argument(
        '--threads',
        type=console.count,
        default=8,
        metavar='N',
        help='objects under way at once (default: 8)',
    )
    console.add_format(parser)
    console.teach(
        parser,
        'lazyimage copy debian --to file:///mnt/backup',
        'lazyimage copy debian@3 web --to /mnt/backup --dry-run',
        'lazyimage copy --all --to-config-file /etc/lazyimage/new.conf',
        'lazyimage copy debian --to /mnt/backup --as debian-of-may',
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from lazyblob import copying

    if bool(arguments.names) == arguments.all:
        raise exceptions.InvalidConfiguration(
            'nothing says what to copy; give names, or --all'
            if not arguments.names
            else '--all copies every blob; leave the names out'
        )
    source = console.connect(arguments)
    target = console.connect_to(
        console.place_of_url(arguments.to)
        if arguments.to
        else console.place_of_file(arguments.to_config_file)
    )
    copying.check(source, target)
    wanted = list(_wanted(arguments, source))
    if arguments.dry_run:
        return _plan(arguments, source, target, wanted)
    return _copy(arguments, source, target, wanted)


def _wanted(
    arguments: argparse.Namespace, source: 'repository.Repository'
) -> Iterator[Wanted]:
    from lazyblob import copying

    catalog = source.catalog
    found: list[tuple[api.Blob, int | None]]
    if arguments.all:
        # The oldest first: what came of them finds them there.
        found = [(blob, None) for blob in catalog.list_blobs()]
    else:
        split = [console.split(name) for name in arguments.names]
        found = [(catalog.find(name), number) for name, number in split]
    if arguments.new_name and len({blob.id for blob, _ in found}) > 1:
        raise exceptions.InvalidConfiguration(
            f'--as "{arguments.new_name}" names one copy and there are '
            f'several blobs; copy them one by one'
        )
    for blob, number in found:
        there = blob
        if arguments.new_name:
            there = dataclasses.replace(
                there,
                id=copying.copied_id(source, blob.id, arguments.new_name),
                name=arguments.new_name,
            )
        if arguments.project is not None:
            there = dataclasses.replace(there, project_id=arguments.project)
        if number is not None:
            yield catalog.version(blob.id, number), there
            continue
        try:
            versions = catalog.versions(blob.id)
        except exceptions.NotFound:
            continue  # Deleted in this moment.
        for version in versions:
            yield version, there


def _copy(
    arguments: argparse.Namespace,
    source: 'repository.Repository',
    target: 'repository.Repository',
    wanted: list[Wanted],
) -> int:
    from lazyblob import copying

    rows = []
    total = sum(version.size_bytes for version, _ in wanted)
    passed_bytes = 0
    with console.Progress('copying', total) as progress:

        def show(done_bytes: int) -> None:
            progress(passed_bytes + done_bytes)

        for version, blob in wanted:
            try:
                result = copying.Copy(
                    source,
                    target,
                    version,
                    blob,
                    threads=arguments.threads,
                    progress=show,
                ).run()
            except _OF_ONE_VERSION as exc:
                rows.append(_failed(version, blob, exc))
            else:
                rows.append(_row(blob, result))
            passed_bytes += version.size_bytes
    return _show(arguments, rows)


def _plan(
    arguments: argparse.Namespace,
    source: 'repository.Repository',
    target: 'repository.Repository',
    wanted: list[Wanted],
) -> int:
    from lazyblob import copy_plan
    from lazyblob import copying

    is_refused = False
    with copy_plan.Plan(source) as plan:
        with console.Progress('looking', len(wanted), 'versions') as progress:
            for count, (version, blob) in enumerate(wanted, 1):
                try:
                    plan.add(copying.Copy(source, target, version, blob))
                except _OF_ONE_VERSION as exc:
                    _failed(version, blob, exc)
                    is_refused = True
                progress(count)
        with console.Progress('listing', None, 'objects') as progress:
            size_bytes = plan.size_bytes(progress)
        console.show_fields(
            arguments,
            {
                'versions': len(wanted),
                'objects': plan.objects,
                'travelling_bytes': size_bytes,
            },
        )
    return int(is_refused)


#: What concerns one version; the others can be copied all the same.
_OF_ONE_VERSION = (
    exceptions.ChunkCorrupt,
    exceptions.Conflict,
    exceptions.NotFound,
)


def _row(blob: 'api.Blob', result: 'copying.Result') -> dict[str, Any]:
    return {
        'name': blob.name or blob.id,
        'id': blob.id,
        'version': result.version.number,
        'size_bytes': result.version.size_bytes,
        'outcome': 'copied' if result.is_new else 'there already',
        'copied_objects': result.copied_objects,
        'copied_bytes': result.copied_bytes,
        'found_objects': result.found_objects,
    }


def _failed(
    version: 'api.Version', blob: 'api.Blob', exc: exceptions.LazyBlobError
) -> dict[str, Any]:
    name = blob.name or blob.id
    print(f'lazyimage: {name}@{version.number}: {exc}', file=sys.stderr)
    return {
        'name': name,
        'id': blob.id,
        'version': version.number,
        'size_bytes': version.size_bytes,
        'outcome': 'failed',
        'copied_objects': 0,
        'copied_bytes': 0,
        'found_objects': 0,
    }


def _show(arguments: argparse.Namespace, rows: list[dict[str, Any]]) -> int:
    totals = {
        key: sum(row[key] for row in rows)
        for key in ('copied_objects', 'copied_bytes', 'found_objects')
    }
    if arguments.output_format == 'json':
        print(json.dumps({**totals, 'versions': rows}))
    else:
        console.show_rows(arguments, COLUMNS, rows)
    return int(any(row['outcome'] == 'failed' for row in rows))
