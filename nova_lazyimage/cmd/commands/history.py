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
"""``lazyimage history``: which blob came of which, as a tree."""

import argparse
import json
from typing import Any

from nova_lazyimage.cmd import console


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        'history',
        help='which blob came of which, as a tree',
        description='Which blob came of which version of another, by clone, '
        'attach or snapshot, as a tree: the one that NAME is part of, or '
        'all. A blob\'s versions are told in brackets. What was deleted is '
        'told as such, or begins a tree of its own.',
    )
    parser.add_argument('name', metavar='NAME', nargs='?')
    console.add_format(parser)
    console.teach(
        parser,
        'lazyimage history debian',
        'lazyimage history --json | jq ".[] | select(.depth > 0)"',
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from lazyblob import lineage

    catalog = console.connect(arguments).catalog
    if arguments.name:
        starts = [catalog.find(arguments.name).id]
    else:
        starts = lineage.roots(catalog)
    entries = []
    with console.Progress('walking', None, 'blobs') as progress:
        for start in starts:
            for entry in lineage.history(catalog, start):
                entries.append(entry)
                progress(len(entries))
    rows = [
        {
            'depth': entry.depth,
            'id': entry.blob.id,
            'name': entry.blob.name,
            'kind': str(entry.blob.kind),
            'state': str(entry.blob.state),
            'origin': entry.blob.origin,
            'origin_version': entry.blob.origin_version,
            'created': entry.blob.created_at,
            'versions': [version.number for version in entry.versions],
        }
        for entry in entries
    ]
    if arguments.output_format == 'json':
        print(json.dumps(rows))
        return
    for row in rows:
        print(line(row))


def line(row: dict[str, Any]) -> str:
    """``    debian@2 -> snapshot  image [1-3]  2026-01-02T03:04:05Z``"""
    name = row['name'] or row['id']
    came = ''
    if row['depth']:
        came = f'{"    " * (row["depth"] - 1)}@{row["origin_version"]} -> '
    what = row['kind']
    if row['state'] != 'active':
        what += (
            f', {"deleted" if row["state"] == "tombstone" else row["state"]}'
        )
    return (
        f'{came}{name}  {what} [{ranges(row["versions"])}]  {row["created"]}'
    )


def ranges(numbers: list[int]) -> str:
    """``1-3 5``."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ' '.join(
        str(first) if first == last else f'{first}-{last}'
        for first, last in found
    )
