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
"""Serve disks through FUSE, for ``bench.disks``, until SIGTERM.

``python -m bench.serving passthrough MOUNT FILE`` or ``... KIND MOUNT STATE
SIZE_BYTES``. Mirrors need no repository and no agent: their base is made
here, chunk by chunk, the same each time. Kinds are

* ``mirror``: two disks, ``read`` and ``write``, over such a base;
* ``empty``: the same over a base without any content;
* ``starved``: as ``mirror``, and a third disk of that name, none of whose
  chunks ever comes.
"""

import os
import pathlib
import signal
import sys
import threading
from typing import Any, NoReturn

THREADS = 16
CHUNK_SIZE_BYTES = 512 << 10
FAN_OUT = 256
STARVED_CHUNKS = 64


def content(index: int) -> bytes:
    """A chunk that does not compress, the same for the same index."""
    import blake3

    hasher = blake3.blake3(index.to_bytes(8, 'little'))
    return hasher.digest(length=CHUNK_SIZE_BYTES)


def stop(*_: object) -> NoReturn:
    raise SystemExit(0)


def passthrough(mount: str, path: str) -> None:
    from nova_lazyimage import _mirror

    _mirror.passthrough(mount, path, THREADS)


def leaves_of(names: list[bytes]) -> list[tuple[int, bytes]]:
    return [
        (
            first // FAN_OUT,
            b''.join(names[first : first + FAN_OUT]).ljust(
                FAN_OUT * 32, b'\0'
            ),
        )
        for first in range(0, len(names), FAN_OUT)
    ]


def mirrors(kind: str, mount: str, state: str, size: str) -> None:
    from lazyblob import chunk
    from lazyblob import digest
    from nova_lazyimage import _mirror

    size_bytes = int(size)
    key = digest.keys(digest.REPOSITORY_SCOPE).chunk
    count = 0 if kind == 'empty' else -(-size_bytes // CHUNK_SIZE_BYTES)
    names = [digest.of(content(index), key) for index in range(count)]
    index_of = {name: index for index, name in enumerate(names)}
    leaves = leaves_of(names)
    # One disk for the reads, one for the writes: what is written is in the
    # delta from then on, and no read of it would use the cache.
    disks = {'read': (size_bytes, leaves), 'write': (size_bytes, leaves)}
    if kind == 'starved':
        # Names that nobody has a content for.
        strange = [name[::-1] for name in names[:STARVED_CHUNKS]]
        disks['starved'] = (
            len(strange) * CHUNK_SIZE_BYTES,
            leaves_of(strange),
        )
    folder = pathlib.Path(state)
    (folder / 'cache').mkdir(parents=True)
    engine = _mirror.Engine(
        cache_directory=str(folder / 'cache'),
        cache_bytes=2 * count * CHUNK_SIZE_BYTES + (64 << 20),
        session_id='bench',
        threads=THREADS,
    )
    engine.mount(mount)

    def fetch() -> None:
        while True:
            wanted = engine.next_fetch(False, 1.0)
            if wanted is None or wanted['digest'] not in index_of:
                continue
            data = content(index_of[wanted['digest']])
            engine.fetched(
                wanted['digest'], chunk.pack(data, chunk.Kind.CHUNK)
            )

    def drain() -> None:
        while True:
            event: dict[str, Any] | None = engine.next_event(1.0)
            if event:
                print(event, file=sys.stderr, flush=True)

    for work in (fetch, fetch, drain):
        threading.Thread(target=work, daemon=True).start()
    live = pathlib.Path('/dev/shm', f'lazyimage-bench-{os.getpid()}')
    live.mkdir()
    try:
        for disk, (disk_bytes, disk_leaves) in disks.items():
            (folder / disk).mkdir()
            engine.attach(
                instance='bench',
                disk=disk,
                attach_id=f'bench-{disk}',
                directory=str(folder / disk),
                live_map=str(live / disk),
                size_bytes=disk_bytes,
                chunk_size_bytes=CHUNK_SIZE_BYTES,
                chunk_key=key,
                leaves=disk_leaves,
                create=True,
                uid=0,
                gid=0,
                mode=0o600,
            )
        print('ready', flush=True)
        signal.pause()
    finally:
        engine.stop()
        engine.unmount()
        for path in live.iterdir():
            path.unlink()
        live.rmdir()


def main(arguments: list[str]) -> None:
    signal.signal(signal.SIGTERM, stop)
    kind, *rest = arguments
    if kind == 'passthrough':
        passthrough(*rest)
    else:
        mirrors(kind, *rest)


if __name__ == '__main__':
    main(sys.argv[1:])
