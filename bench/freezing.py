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
"""Freeze a disk again and again while fio writes to it, for ``bench.freeze``.

``python -m bench.freezing FOLDER SIZE_BYTES SECONDS`` prints JSON: the pauses
and overheads of all freezes, and fio's write latencies, in milliseconds.
Every block of the disk is dirty before: its base has a content everywhere,
all of which is discarded, so that a terabyte needs no terabyte.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
from typing import Any

from bench import serving

INTERVAL_SECONDS = 0.02
SPAN_BYTES = 1 << 30
DEPTH = 32
MILLI = 1e3


def guest(path: pathlib.Path, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            'fio',
            '--name=guest',
            f'--filename={path}',
            f'--size={SPAN_BYTES}',
            '--rw=randwrite',
            '--bs=4k',
            '--direct=1',
            '--ioengine=libaio',
            f'--iodepth={DEPTH}',
            '--norandommap',
            '--fallocate=none',
            '--time_based',
            f'--runtime={seconds * MILLI:.0f}ms',
            '--output-format=json',
        ],
        stdout=subprocess.PIPE,
        text=True,
    )


def freeze_for(mirror: Any, seconds: float) -> list[tuple[float, float]]:
    found = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(INTERVAL_SECONDS)
        sealed = mirror.freeze()
        found.append(sealed.pause_seconds)
        sealed.abandon()
    return found


def main(folder: str, size: str, seconds: str) -> None:
    from nova_lazyimage import _mirror

    top, size_bytes, duration = pathlib.Path(folder), int(size), float(seconds)
    chunks = size_bytes // serving.CHUNK_SIZE_BYTES
    full = b'\1' * 32 * serving.FAN_OUT
    live = pathlib.Path('/dev/shm', f'lazyimage-bench-{os.getpid()}')
    for path in (top / 'cache', top / 'disk', top / 'mnt', live):
        path.mkdir(parents=True)
    engine = _mirror.Engine(
        cache_directory=str(top / 'cache'),
        cache_bytes=64 << 20,
        session_id='bench',
        threads=serving.THREADS,
    )
    engine.mount(str(top / 'mnt'))
    try:
        mirror = engine.attach(
            instance='bench',
            disk='disk',
            attach_id='bench',
            directory=str(top / 'disk'),
            live_map=str(live / 'disk'),
            size_bytes=size_bytes,
            chunk_size_bytes=serving.CHUNK_SIZE_BYTES,
            chunk_key=bytes(32),
            leaves=[(i, full) for i in range(-(-chunks // serving.FAN_OUT))],
            create=True,
            uid=0,
            gid=0,
            mode=0o600,
        )
        disk = top / 'mnt' / 'bench' / 'disk'
        subprocess.run(
            ['fallocate', '--punch-hole', '-o', '0', '-l', size, disk],
            check=True,
        )
        if mirror.status()['dirty_bytes'] != size_bytes:
            raise SystemExit('not every block is dirty')
        fio = guest(disk, duration + 1)
        time.sleep(0.5)
        pauses = freeze_for(mirror, duration)
        output, _ = fio.communicate()
        if fio.returncode:
            raise SystemExit('fio failed')
        (job,) = json.loads(output[output.index('{') :])['jobs']
        spread = job['write']['clat_ns']['percentile']
        print(
            json.dumps(
                {
                    'pauses': [pause * MILLI for pause, _ in pauses],
                    'overheads': [over * MILLI for _, over in pauses],
                    'write_p99': spread['99.000000'] / 1e6,
                    'iops': job['write']['iops'],
                }
            )
        )
    finally:
        engine.stop()
        engine.unmount()
        shutil.rmtree(live)


if __name__ == '__main__':
    main(*sys.argv[1:])
