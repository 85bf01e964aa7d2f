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
"""``lazyimage diff``: which ranges differ between two versions."""

import argparse
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from nova_lazyimage.cmd import console

if TYPE_CHECKING:
    from lazyblob import tree

COLUMNS = ('offset', 'length_bytes', 'change')


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        'diff',
        help='which ranges differ between two versions',
        description='Which ranges differ between two versions, in whole '
        'chunks: "changed", "added" (a hole before) or "removed" (a hole '
        'now). What they share is not read.',
    )
    parser.add_argument('before', metavar='NAME[@VERSION]')
    parser.add_argument('after', metavar='NAME[@VERSION]')
    console.add_format(parser)
    console.teach(
        parser,
        'lazyimage diff debian@1 debian@3',
        'lazyimage diff debian web --json',
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    repo = console.connect(arguments)
    _blob, before = console.find(repo, arguments.before)
    blob, after = console.find(repo, arguments.after)
    size_bytes = max(before.size_bytes, after.size_bytes)
    with console.Progress('comparing', size_bytes) as progress:
        rows = []
        for first, count, change in _ranges(repo.diff(before, after)):
            offset = first * blob.chunk_size_bytes
            length_bytes = count * blob.chunk_size_bytes
            progress(offset + length_bytes)
            rows.append(
                {
                    'offset': offset,
                    'length_bytes': length_bytes,
                    'change': change,
                }
            )
    console.show_rows(arguments, COLUMNS, rows)


def _ranges(
    differences: Iterable['tree.Difference'],
) -> Iterator[tuple[int, int, str]]:
    """First chunk, number of chunks, and what happened to them."""
    first, count, change = 0, 0, ''
    for found in differences:
        kind = 'changed'
        if found.before is None:
            kind = 'added'
        elif found.after is None:
            kind = 'removed'
        if count and kind == change and found.index == first + count:
            count += 1
            continue
        if count:
            yield first, count, change
        first, count, change = found.index, 1, kind
    if count:
        yield first, count, change
