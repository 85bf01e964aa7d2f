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
"""``lazyimage repair``: put back what is damaged or missing."""

import argparse
import contextlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lazyblob import exceptions
from nova_lazyimage.agent import client
from nova_lazyimage.cmd import console
from nova_lazyimage.cmd.commands import verify

if TYPE_CHECKING:
    from lazyblob import repairing
    from lazyblob import wanted


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        'repair',
        help='put back what is damaged or missing',
        description='Look as "lazyimage verify" does, and put back what is '
        'missing, what was found damaged before, and with --read-data what '
        'is found damaged now, from any source that still has it. What a '
        'source says is believed only if its digest matches. What nobody has '
        'is told on standard error with the versions and bytes that are '
        'lost, and the exit status is 1. It may be interrupted and run '
        'again.',
    )
    parser.add_argument('name', metavar='NAME[@VERSION]', nargs='?')
    parser.add_argument(
        '--from',
        dest='sources',
        metavar='URL',
        action='append',
        default=[],
        help='another repository (file:///folder) or chunk store; may be '
        'given several times',
    )
    parser.add_argument(
        '--from-cache',
        dest='caches',
        metavar='SOCKET',
        action='append',
        default=[],
        help='the chunk cache of the host whose agent listens there, '
        'usually /run/lazyimage/agent.sock; it has chunks and no manifests; '
        'may be given several times',
    )
    verify.add_depth(parser)
    parser.add_argument(
        '--dry-run',
        action='store_true',
        help='tell what would be put back, and put back nothing',
    )
    console.add_format(parser)
    console.teach(
        parser,
        'lazyimage repair --from file:///mnt/backup --dry-run',
        'lazyimage repair --from s3://images-copy/chunks',
        'lazyimage repair debian --from-cache /run/lazyimage/agent.sock',
    )
    # Of verify's options, those that make no sense here.
    parser.set_defaults(run=run, subset=None, limit_mib=None)


def run(arguments: argparse.Namespace) -> int:
    """:raises InvalidConfiguration: a source cannot be one"""
    options = verify.options(arguments)
    repo = console.connect(arguments)
    blob_id, number = verify.target(repo, arguments.name)
    with contextlib.ExitStack() as stack:
        sources = list(open_sources(arguments, repo.store.url, stack))
        steps = stack.enter_context(verify.Steps())
        outcome = repo.repair(
            sources,
            blob_id,
            number,
            options,
            steps,
            is_dry=arguments.dry_run,
        )
        as_json = arguments.output_format == 'json'
        teller = verify.Teller(repo, is_silent=as_json)
        lost = teller.tell(outcome.report.problems(outcome.lost))
    done = 'repairable' if arguments.dry_run else 'repaired'
    fields = {
        'versions': outcome.report.version_count,
        'objects': outcome.report.object_count,
        f'{done}_objects': len(outcome.mended),
        'lost_objects': len(outcome.lost),
        'damaged_versions': teller.version_count,
    }
    if as_json:
        names = [name.hex() for name in outcome.mended]
        print(json.dumps({**fields, done: names, 'lost': lost}))
    else:
        console.show_fields(arguments, fields)
    return int(bool(outcome.lost))


def open_sources(
    arguments: argparse.Namespace,
    own_url: str,
    stack: contextlib.ExitStack,
) -> Iterator['repairing.Source']:
    """Those of the command line, in its order: stores, then caches.

    :raises InvalidConfiguration: a URL cannot work, or is the own store's
    """
    from lazyblob import plugins
    from lazyblob import repairing
    from lazyblob import urls

    settings = console.place(arguments).store_settings
    for given in arguments.sources:
        url = store_url(given)
        if url == own_url:
            raise exceptions.InvalidConfiguration(
                f'--from "{urls.masked(given)}" is the repository that is to '
                f'be repaired; name another one'
            )
        store = plugins.chunk_store(url, settings)
        stack.callback(store.close)
        yield repairing.StoreSource(store, urls.masked(given))
    for path in arguments.caches:
        yield CacheSource(path)


def store_url(url: str) -> str:
    """The chunk store of a repository's URL, or of a store's own.

    :raises InvalidConfiguration: there is neither
    """
    if '://' not in url:
        url = f'file://{os.path.abspath(url)}'
    if not url.startswith('file:') or ',' in url:
        return url
    from lazyblob.chunk_store import file

    path = file.path_of(url)
    if (path / 'catalog.sqlite').exists():
        return (path / 'chunks').as_uri()
    if not pathlib.Path(path).is_dir():
        raise exceptions.InvalidConfiguration(
            f'--from "{url}": there is no such folder; mount it, or correct '
            f'the URL'
        )
    return url


class CacheSource:
    """The chunk cache of a host, by its agent's socket."""

    def __init__(self, path: str) -> None:
        self.label = path
        self._client = client.AgentClient(path)

    def has(self, asked: 'wanted.Wanted') -> bool:
        """An agent tells by giving it."""
        try:
            self.content(asked)
        except exceptions.NotFound:
            return False
        return True

    def content(self, asked: 'wanted.Wanted') -> bytes:
        """:raises NotFound: not in the cache, or no chunk"""
        from lazyblob import chunk

        if asked.kind is not chunk.Kind.CHUNK:
            raise exceptions.NotFound('a cache holds chunks only')
        try:
            found = self._client.chunk(asked.name.hex(), asked.size_bytes)
        except client.NotFound as exc:
            raise exceptions.NotFound(str(exc)) from exc
        except client.AgentError as exc:
            raise exceptions.TemporaryStoreError(str(exc)) from exc
        return asked.proved(found)
