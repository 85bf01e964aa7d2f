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
"""What the sub-commands of ``lazyimage`` share: repository, names, output."""

import argparse
import json
import os
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from lazyblob import exceptions
from nova_lazyimage.cmd import threads

if TYPE_CHECKING:
    from lazyblob import repository
    from lazyblob.catalog import api

ENVIRONMENT = 'LAZYIMAGE_REPOSITORY'
CONFIG_FILE = '/etc/lazyimage/lazyimage.conf'
_PROGRESS_SECONDS = 0.2
_UNITS = ('B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB')


class Place(NamedTuple):
    """Where a repository is.

    :ivar transport_url: of the message bus, for a catalog over ``rpc://``
    :ivar store_settings: what a chunk store is told beside its URL; None:
        it looks into the environment
    :ivar public_keys: whose answers over ``rpc://`` are believed
    """

    chunk_store: str
    catalog: str
    transport_url: str | None = None
    store_settings: Mapping[str, Any] | None = None
    public_keys: Sequence[str] | None = None


def place(arguments: argparse.Namespace) -> Place:
    """Where the repository is that is meant.

    :raises InvalidConfiguration: nothing says where the repository is
    """
    url = arguments.repository
    if url is None and arguments.config_file is None:
        url = os.environ.get(ENVIRONMENT)
    if url:
        return place_of_url(url)
    path = arguments.config_file or CONFIG_FILE
    if not os.access(path, os.R_OK):
        raise exceptions.InvalidConfiguration(
            f'no repository is named and "{path}" cannot be read; give '
            f'--repository file:///folder or set {ENVIRONMENT}'
        )
    return place_of_file(path)


def place_of_url(url: str) -> Place:
    """The repository in one folder: its URL, or the folder."""
    from lazyblob import repository

    if '://' not in url:
        url = f'file://{os.path.abspath(url)}'
    return Place(*repository.urls_of(url))


def place_of_file(path: str) -> Place:
    """The repository that a configuration file names."""
    from oslo_config import cfg

    from lazyblob import conf as store_conf
    from nova_lazyimage.conf import conductor as conductor_options
    from nova_lazyimage.conf import repository as options

    conf = cfg.ConfigOpts()
    options.register_opts(conf)
    conductor_options.register_opts(conf)
    conf.register_opts([cfg.StrOpt('transport_url', secret=True)])
    try:
        conf([], project='lazyimage', default_config_files=[path])
        section = conf.repository
        return Place(
            section.chunk_store,
            section.catalog,
            conf.transport_url,
            store_conf.store_settings(lambda name: getattr(section, name)),
            conf.conductor.public_keys
            if section.catalog.startswith('rpc:')
            else None,
        )
    except cfg.Error as exc:
        raise exceptions.InvalidConfiguration(f'"{path}": {exc}') from exc


def connect(arguments: argparse.Namespace) -> 'repository.Repository':
    """The repository that the command line, environment or file names."""
    return connect_to(place(arguments))


def connect_to(where: Place) -> 'repository.Repository':
    from lazyblob import repository

    if where.catalog.startswith('rpc:'):
        threads.use_native()
    return repository.connect(
        where.chunk_store,
        where.catalog,
        transport_url=where.transport_url,
        store_settings=where.store_settings,
        public_keys=where.public_keys,
    )


def split(name: str) -> tuple[str, int | None]:
    """``NAME`` or ``NAME@VERSION``."""
    blob, separator, version = name.rpartition('@')
    if separator and version.isascii() and version.isdigit():
        return blob, int(version)
    return name, None


def find(
    repo: 'repository.Repository', name: str
) -> tuple['api.Blob', 'api.Version']:
    """The blob and version that ``NAME[@VERSION]`` names."""
    blob_name, number = split(name)
    blob = repo.catalog.find(blob_name)
    return blob, repo.catalog.version(blob.id, number)


def count(text: str) -> int:
    """A number of things, at least one: of an option."""
    if text.isascii() and text.isdigit() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f'"{text}" is no number of 1 or more')


def add_format(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '-f',
        '--output',
        choices=('table', 'json'),
        default='table',
        dest='output_format',
        help='how to print (default: table)',
    )
    parser.add_argument(
        '--json',
        action='store_const',
        const='json',
        default=argparse.SUPPRESS,
        dest='output_format',
        help='the same as "-f json"',
    )


def teach(parser: argparse.ArgumentParser, *examples: str) -> None:
    """End a command's help, which is a page's too, with examples."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = '\n'.join(textwrap.wrap(parser.description or ''))
    lines = '\n'.join(f'  {example}' for example in examples)
    parser.epilog = f'Examples::\n\n{lines}'


def readable(size_bytes: int) -> str:
    """``1.5 GiB``."""
    size = float(size_bytes)
    for unit in _UNITS:
        if size < 1024 or unit == _UNITS[-1]:
            break
        size /= 1024
    return f'{size_bytes} B' if unit == 'B' else f'{size:.1f} {unit}'


def readable_seconds(seconds: float) -> str:
    """``1.5 ms``."""
    if seconds < 0.001:
        return f'{seconds * 1_000_000:.0f} us'
    if seconds < 1:
        return f'{seconds * 1000:.1f} ms'
    return f'{seconds:.1f} s'


def _text(key: str, value: Any) -> str:
    if key.endswith('seconds') and isinstance(value, float):
        return readable_seconds(value)
    if key.endswith('_bytes') and isinstance(value, int):
        return readable(value)
    return '' if value is None else str(value)


def _heading(key: str) -> str:
    key = key.removesuffix('_bytes').removesuffix('_seconds')
    return key.replace('_', ' ')


def show_rows(
    arguments: argparse.Namespace,
    columns: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
) -> None:
    """A table for people, or a list of objects."""
    if arguments.output_format == 'json':
        print(json.dumps([{c: row[c] for c in columns} for row in rows]))
        return
    lines = [[_heading(column).upper() for column in columns]]
    lines += [[_text(c, row[c]) for c in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (
            cell.ljust(width) for cell, width in zip(line, widths, strict=True)
        )
        print('  '.join(cells).rstrip())


def show_fields(
    arguments: argparse.Namespace, fields: Mapping[str, Any]
) -> None:
    """One thing: a line a field, or an object."""
    if arguments.output_format == 'json':
        print(json.dumps(fields))
        return
    width = max(map(len, fields))
    for key, value in fields.items():
        print(f'{_heading(key):{width}}  {_text(key, value)}'.rstrip())


class Progress:
    """A line on standard error that shows how far it is, if one looks.

    Call it with the bytes (or whatever ``total`` counts) done so far.

    :param unit: of what is counted, if it is not bytes
    """

    def __init__(self, verb: str, total: int | None, unit: str = '') -> None:
        self._verb = verb
        self._unit = unit
        self._total = total
        self._started = self._shown = time.monotonic()
        self._is_on = sys.stderr.isatty()

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if not self._is_on or now - self._shown < _PROGRESS_SECONDS:
            return
        self._shown = now
        share = f' {done / self._total:4.0%}' if self._total else ''
        rate = done / (now - self._started)
        if self._unit:
            far = f'{done} {self._unit}, {rate:.1f}/s'
        else:
            far = f'{readable(done)}, {readable(int(rate))}/s'
        print(
            f'\r{self._verb}{share} {far}\x1b[K',
            end='',
            file=sys.stderr,
            flush=True,
        )

    def __enter__(self) -> Callable[[int], None]:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_on:
            print('\r\x1b[K', end='', file=sys.stderr, flush=True)
