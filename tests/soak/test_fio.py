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
"""fio verifies what it wrote while its disk's agent is killed and killed."""

import json
import os
import shutil
import signal
import subprocess
import time
import uuid

import pytest

from tests.functional.agent import takeover
from tests.functional.agent.conftest import noise_of
from tests.functional.agent.conftest import site  # noqa: F401

KILLS = int(os.environ.get('LAZYIMAGE_SOAK_KILLS', '20'))
SIZE_BYTES = 64 * 1024 * 1024
FIO = [
    'fio',
    '--name=verify',
    '--ioengine=libaio',
    '--direct=1',
    '--rw=randwrite',
    '--bsrange=4k-64k',
    '--iodepth=16',
    f'--size={SIZE_BYTES}',
    '--verify=crc32c',
    '--verify_fatal=1',
    # Verified in between, not only at the end.
    '--verify_backlog=128',
    '--fsync=64',
    '--loops=1000000',
    '--time_based',
    '--output-format=json',
]


@pytest.mark.soak
@pytest.mark.parametrize('end', ['kill', 'renew'])
def test_fio_verifies_under_kills(site, tmp_path, rng, end):  # noqa: F811
    assert shutil.which('fio'), 'install fio'
    kept = takeover.Kept(site)
    image = site.image(noise_of(SIZE_BYTES))
    key = str(uuid.uuid4()), 'disk'
    path = kept.client.attach(*key, clone_blob=image)['path']
    # An upgrade costs more than a kill, and hides less.
    number = KILLS if end == 'kill' else max(5, KILLS // 10)
    report = tmp_path / 'fio.json'
    fio = subprocess.Popen(
        [
            *FIO,
            f'--filename={path}',
            f'--runtime={30 * number + 600}',
            f'--output={report}',
        ],
        cwd=tmp_path,
    )
    try:
        while len(kept.deaths) < number:
            time.sleep(rng.uniform(0.1, 0.5))
            assert fio.poll() is None, report.read_text()
            if end == 'kill':
                kept.strike()
            else:
                kept.renew()
            assert kept.wait_until_ready()['resumed']
        # It ends by itself, and says what it found.
        fio.send_signal(signal.SIGINT)
        fio.wait(120)
    finally:
        if fio.poll() is None:
            fio.kill()
            fio.wait()
    text = report.read_text()
    job = json.loads(text[text.index('{') :])['jobs'][0]
    assert job['error'] == 0, text
    written, read = job['write'], job['read']
    print(
        f'fio, {number} times {end}: {written["total_ios"]} writes, '
        f'{read["total_ios"]} verified, longest write '
        f'{written["clat_ns"]["max"] / 1e9:.2f} s'
    )
    assert written['total_ios'] > 10 * number
    assert read['total_ios'] > 0
