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
"""Images to and from a real object gateway, beside obstore alone.

obstore puts and gets the very objects that the repository would, packed
already, as many at once; so what is left is what hashing, compressing, asking
and publishing cost beside the gateway. Gateway and OSD (Ceph's, of one node,
as the tests start it) run on the same processors.
"""

import concurrent.futures
import itertools
import os
import pathlib
import shutil
import tempfile
import time
from typing import Any

from bench import catalog
from bench import harness
from bench import snapshot

SIZE_BYTES = int(os.environ.get('LAZYIMAGE_BENCH_MIB', '128')) << 20
AT_ONCE = 8
OBSTORE, REPOSITORY = 'obstore alone', 'repository'
UPLOAD, AGAIN, DOWNLOAD = 'upload', 'upload again', 'download'
_generations = itertools.count(1)


class Place:
    """The gateway of all contenders, up when the first one needs it.

    :param gateway: one that is up already, and stays
    """

    def __init__(self, gateway: Any = None) -> None:
        self._folder = pathlib.Path()
        # Whoever gave it is a user that does not leave.
        self._users = 0 if gateway is None else 1
        self.gateway = gateway

    def enter(self) -> None:
        self._users += 1
        if self.gateway is None:
            if not shutil.which('radosgw'):
                raise harness.Missing('s3: radosgw is not installed')
            # Its sockets' names have to be short.
            self._folder = pathlib.Path(tempfile.mkdtemp(prefix='bench'))
            module = catalog.load('gateway')
            self.gateway = module.Gateway(self._folder)
            self.gateway.__enter__()

    def leave(self) -> None:
        self._users -= 1
        if not self._users and self.gateway is not None:
            self.gateway.__exit__(None, None, None)
            shutil.rmtree(self._folder, ignore_errors=True)


def chunks(generation: int) -> list[bytearray]:
    """An image that the gateway has never seen."""
    return [
        snapshot.content(index, generation)
        for index in range(SIZE_BYTES // snapshot.CHUNK_BYTES)
    ]


class Obstore:
    """Nothing but puts and gets of objects that were packed before."""

    name = OBSTORE

    def __init__(self, place: Place) -> None:
        self._place = place
        self._store: Any = None

    def prepare(self) -> None:
        self._place.enter()
        self._store = self._place.gateway.raw(prefix='alone')

    def has(self, case: str) -> bool:
        return case != AGAIN

    def sample(self, case: str) -> harness.Measurements:
        import obstore

        from lazyblob import chunk

        generation = next(_generations)
        objects = [
            (f'{generation}/{index}', chunk.pack(data, chunk.Kind.CHUNK))
            for index, data in enumerate(chunks(generation))
        ]

        def put(pair: tuple[str, bytes]) -> None:
            obstore.put(self._store, *pair, use_multipart=False)

        def get(pair: tuple[str, bytes]) -> int:
            return len(obstore.get(self._store, pair[0]).bytes())

        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            begun = time.monotonic()
            list(pool.map(put, objects))
            seconds = time.monotonic() - begun
            if case == DOWNLOAD:
                begun = time.monotonic()
                list(pool.map(get, objects))
                seconds = time.monotonic() - begun
        return {case: seconds}

    def cleanup(self) -> None:
        self._place.leave()


class Repository:
    """An image in, and out again."""

    name = REPOSITORY

    def __init__(self, work: pathlib.Path, place: Place) -> None:
        self._work = work
        self._place = place
        self._repository: Any = None

    def prepare(self) -> None:
        from lazyblob import repository

        self._place.enter()
        self._repository = repository.initialise(
            's3://chunks/bench',
            f'sqlite:///{self._work}/catalog.sqlite',
            store_settings={'s3': self._place.gateway.settings()},
        )

    def has(self, case: str) -> bool:
        return True

    def sample(self, case: str) -> harness.Measurements:
        generation = next(_generations)
        image = chunks(generation)
        seconds = self._upload(image, f'image-{generation}')
        if case == AGAIN:
            seconds = self._upload(image, f'again-{generation}')
        if case == DOWNLOAD:
            reader = self._repository.open(f'image-{generation}')
            begun = time.monotonic()
            size_bytes = sum(len(piece) for piece in reader.stream())
            seconds = time.monotonic() - begun
            if size_bytes != SIZE_BYTES:
                raise harness.Missing(f'{size_bytes} bytes came back')
        return {case: seconds}

    def cleanup(self) -> None:
        if self._repository is not None:
            self._repository.close()
        self._place.leave()

    def _upload(self, image: list[bytearray], blob_id: str) -> float:
        begun = time.monotonic()
        self._repository.create(image, blob_id=blob_id)
        return time.monotonic() - begun


def contenders(work: pathlib.Path) -> list[Any]:
    place = Place()
    return [Obstore(place), Repository(work, place)]


BENCH = harness.Bench(
    name='s3',
    summary=f'images of {SIZE_BYTES >> 20} MiB to and from a gateway of '
    f'Ceph\'s; obstore {AT_ONCE} at once',
    metrics=[harness.Metric(case, 's') for case in (UPLOAD, AGAIN, DOWNLOAD)],
    baseline=OBSTORE,
    contenders=contenders,
    goals=[
        harness.Goal(UPLOAD, REPOSITORY, at_least=0.8),
        harness.Goal(DOWNLOAD, REPOSITORY, at_least=0.8),
    ],
)
