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
"""What a look at many chunks costs: listed, walked and marked by ``verify``.

The store answers from memory, so that the figures are verify's own: time and
memory for each object; time is the processor's, there is nothing to wait for.
A repository of a hundredth of the size beside it shows whether they grow.
"""

import hashlib
import json
import os
import pathlib
import resource
import subprocess
import sys
import time
from collections.abc import Iterator

from bench import harness

OBJECTS = int(os.environ.get('LAZYIMAGE_BENCH_OBJECTS', '1000000'))
CHUNK_BYTES = 512 << 10
STORED_BYTES = 200_000
WORSE_AT_MOST = 1.5
MEMORY_MIB_MAX = 80.0


def _name(index: int) -> bytes:
    return hashlib.blake2b(index.to_bytes(8, 'big'), digest_size=32).digest()


def make(chunk_count: int, folder: pathlib.Path) -> None:
    """A version of so many chunks, of which only the manifest is stored."""
    from lazyblob import chunk
    from lazyblob import digest
    from lazyblob import manifest
    from lazyblob import repository
    from lazyblob.catalog import api

    made = repository.initialise(*repository.urls_of(folder.as_uri()))
    size_bytes = chunk_count * CHUNK_BYTES
    leaves = {
        first // 256: b''.join(map(_name, range(first, first + 256)))
        for first in range(0, chunk_count, 256)
    }
    keys = digest.keys(digest.REPOSITORY_SCOPE)
    encoded = manifest.Manifest(size_bytes, CHUNK_BYTES, leaves).encode(keys)
    for name, node in encoded.nodes:
        made.store.put(name, chunk.pack(node, chunk.Kind.NODE))
    descriptor = chunk.pack(encoded.descriptor, chunk.Kind.DESCRIPTOR)
    made.store.put(encoded.root, descriptor)
    made.catalog.begin_session('bench', 'session')
    blob = made.catalog.create(
        'disk',
        kind=api.Kind.IMAGE,
        project_id='',
        chunk_size_bytes=CHUNK_BYTES,
    )
    made.catalog.publish(
        'disk',
        epoch=blob.epoch,
        parent=0,
        commit_id='c',
        root=encoded.root.hex(),
        size_bytes=size_bytes,
        session_id='session',
    )
    made.clone('disk', blob_id='clone')


def look(chunk_count: int, folder: pathlib.Path) -> dict[str, float]:
    """In a process of its own: CPU microseconds a chunk, MiB in all."""
    from lazyblob import repository
    from lazyblob import verifying
    from lazyblob.chunk_store import file

    class Listed(file.FileStore):
        """Says that it has the chunks; nodes and roots are files."""

        is_remote = True

        def list(self) -> Iterator[tuple[bytes, int]]:
            yield from super().list()
            for index in range(chunk_count):
                yield _name(index), STORED_BYTES

    store_url, catalog_url = repository.urls_of(folder.as_uri())
    made = repository.connect(store_url, catalog_url)
    made.store = Listed(store_url)
    before_bytes = _resident_bytes()
    begun = time.process_time()
    options = verifying.Options(reads_data=False)
    report = made.verify(options=options)
    seconds = time.process_time() - begun
    grown_bytes = _resident_bytes() - before_bytes
    assert report.is_sound, 'nothing is damaged'
    assert report.chunk_count == chunk_count, 'each was looked at'
    assert report.unreferenced_objects == 0, 'each was marked'
    return {
        'a chunk': seconds / chunk_count * 1e6,
        'memory': grown_bytes / (1 << 20),
    }


def _resident_bytes() -> int:
    pages = pathlib.Path('/proc/self/statm').read_text().split()[1]
    return int(pages) * resource.getpagesize()


class Look:
    """Made and measured in processes of their own."""

    def __init__(
        self, name: str, chunk_count: int, work: pathlib.Path
    ) -> None:
        self.name = name
        self._chunk_count = chunk_count // 256 * 256
        self._folder = work / name.replace(' ', '-')

    def prepare(self) -> None:
        self._do('make')

    def run(self) -> harness.Measurements:
        found: dict[str, float] = json.loads(self._do('look'))
        return found

    def cleanup(self) -> None:
        pass  # The folder goes with the work.

    def _do(self, what: str) -> str:
        return subprocess.run(
            [
                *(sys.executable, '-m', 'bench.verifying', what),
                *(str(self._chunk_count), str(self._folder)),
            ],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout


def contenders(work: pathlib.Path) -> list[Look]:
    return [
        Look('a hundredth', OBJECTS // 100, work),
        Look('all', OBJECTS, work),
    ]


BENCH = harness.Bench(
    name='verify',
    summary=f'a look at {OBJECTS:,} chunks that a store lists, and at a '
    'hundredth of them',
    metrics=[
        harness.Metric('a chunk', 'us'),
        harness.Metric('memory', 'MiB'),
    ],
    baseline='a hundredth',
    contenders=contenders,
    goals=[
        harness.Goal('a chunk', 'all', at_least=1 / WORSE_AT_MOST),
        harness.Goal('memory', 'all', at_most=MEMORY_MIB_MAX),
    ],
    rounds=3,
)

if __name__ == '__main__':
    what, count, place = sys.argv[1:]
    if what == 'make':
        make(int(count), pathlib.Path(place))
    else:
        print(json.dumps(look(int(count), pathlib.Path(place))))
