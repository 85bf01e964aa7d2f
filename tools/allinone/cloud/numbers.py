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
"""What our parts say about themselves, for the demo's closing table."""

from __future__ import annotations

from typing import Any

from cloud import agent
from cloud import database
from cloud import engine

MIB = 1 << 20

Rows = list[tuple[str, str]]


def status(server: str, disk: str = 'disk') -> Any:
    """The agent's record of one disk."""
    return agent.get(f'/v1/mirrors/{server}/{disk}')


def mirror(server: str, image_bytes: int) -> Rows:
    """What a server's disk cost so far."""
    found = status(server)
    share = 100 * found['fetched_bytes'] / image_bytes
    return [
        (
            'fetched',
            f'{found["fetched_bytes"] / MIB:.1f} MiB, {share:.1f} % of the '
            f'image\'s {image_bytes / MIB:.0f} MiB',
        ),
        ('written locally', f'{found["local_bytes"] / MIB:.1f} MiB'),
    ]


def committed_bytes() -> int:
    """What this host's snapshots have stored since the agent started."""
    text = agent.request('GET', '/metrics')[1].decode()
    for line in text.splitlines():
        name, _, value = line.partition(' ')
        if name == 'lazyimage_commit_bytes_total':
            return int(float(value))
    return 0


def repository() -> Rows:
    """How large the catalog and the chunk store are."""
    catalog = database.sql(
        'SELECT COALESCE(SUM(data_length + index_length), 0) FROM '
        "information_schema.tables WHERE table_schema = 'lazyimage';"
    )
    return [
        ('catalog', f'{int(catalog) / MIB:.1f} MiB'),
        ('chunk store', f'{engine.stored_bytes() / MIB:.1f} MiB'),
    ]
