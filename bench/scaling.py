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
"""Attach many mirrors in one process and say what they take, as JSON.

``python -m bench.scaling FOLDER LIVE COUNT SIZE_BYTES IDLE_SECONDS``, twice:
the first makes the mirrors, all of one version, and every later one serves
again what the one before left, however it ended. Waits for its standard input
to end; killed before that, it leaves what a crash leaves.
"""

import json
import os
import pathlib
import sys
import threading
import time

from bench import serving

CHUNK_SIZE_BYTES = 512 << 10


def memory() -> dict[str, int]:
    """Bytes of this process by kind, as the kernel counts them."""
    found = {}
    for line in pathlib.Path('/proc/self/status').read_text().splitlines():
        name, _, rest = line.partition(':')
        if name in ('RssAnon', 'RssShmem'):
            found[name] = int(rest.split()[0]) << 10
    return found


def threads() -> int:
    return len(os.listdir('/proc/self/task'))


def main(arguments: list[str]) -> None:
    from nova_lazyimage import _mirror

    folder, live = map(pathlib.Path, arguments[:2])
    count, size_bytes = map(int, arguments[2:4])
    idle_seconds = float(arguments[4])
    chunks = -(-size_bytes // CHUNK_SIZE_BYTES)
    leaves = serving.leaves_of(
        [index.to_bytes(4, 'little') * 8 for index in range(1, chunks + 1)]
    )
    create = not folder.exists()
    for path in (folder, folder / 'cache', folder / 'mnt', live):
        path.mkdir(exist_ok=True)
    engine = _mirror.Engine(
        cache_directory=str(folder / 'cache'),
        cache_bytes=1 << 30,
        session_id='bench',
    )
    engine.mount(str(folder / 'mnt'))
    for index in range(8):
        threading.Thread(
            target=wait, args=(engine, index < 4), daemon=True
        ).start()
    before = memory(), threads()
    started = time.monotonic()
    for index in range(count):
        directory = folder / str(index)
        directory.mkdir(exist_ok=True)
        engine.attach(
            instance=f'server-{index}',
            disk='root',
            attach_id=str(index),
            directory=str(directory),
            live_map=str(live / str(index)),
            size_bytes=size_bytes,
            chunk_size_bytes=CHUNK_SIZE_BYTES,
            chunk_key=bytes(32),
            leaves=leaves,
            create=create,
            uid=0,
            gid=0,
            mode=0o600,
        )
    seconds = time.monotonic() - started
    after = memory(), threads()
    cpu = time.process_time()
    time.sleep(idle_seconds)
    cpu = time.process_time() - cpu
    print(
        json.dumps(
            {
                'attach_seconds': seconds,
                'private_bytes': after[0]['RssAnon'] - before[0]['RssAnon'],
                'map_bytes': sum(p.stat().st_size for p in live.iterdir()),
                'threads_before': before[1],
                'threads': after[1],
                'idle_cpu_seconds': cpu,
            }
        ),
        flush=True,
    )
    sys.stdin.read()
    engine.stop()
    engine.unmount()


def wait(engine: object, guests_only: bool) -> None:
    """Ask for work, as the agent's fetch threads do."""
    while True:
        engine.next_fetch(guests_only, 1.0)  # type: ignore[attr-defined]


if __name__ == '__main__':
    main(sys.argv[1:])
