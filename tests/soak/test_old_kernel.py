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
"""Take-over where the kernel cannot send requests again (before 6.9).

The same test as on this kernel, inside a machine with Debian 12's.
"""

import os
import re

import pytest

from tests.soak import old_kernel

VERSION = '6.1'
# The machine is emulated, and slow: each of its kills takes a minute.
KILLS = min(int(os.environ.get('LAZYIMAGE_SOAK_KILLS', '24')), 10)
SECONDS_MAX = 2400 + 90 * KILLS


@pytest.mark.soak
@pytest.mark.timeout(SECONDS_MAX + 60)
def test_no_kill_is_an_error_without_the_kernels_help(tmp_path):
    package = old_kernel.package(VERSION)
    if package is None:
        pytest.skip(
            f'no kernel {VERSION} in {old_kernel.KERNELS}; '
            '"tools/allinone/root.sh kernel" fetches it'
        )
    machine = old_kernel.Machine(package, tmp_path)
    status, text = machine.run(
        f'LAZYIMAGE_TEST_PATIENCE=400 LAZYIMAGE_SOAK_KILLS={KILLS} '
        'python -m pytest -q -s -p no:cacheprovider --timeout=0 '
        '--basetemp=/var/tmp/t '
        'tests/functional/agent/test_takeover.py::TestKills',
        SECONDS_MAX,
    )
    said = re.search(r'\d+ deaths.*', text)
    print(f'kernel {re.search("KERNEL (.*)", text)[1]}:', said and said[0])
    assert status == 0, text[-6000:]
    assert re.search(rf'KERNEL {re.escape(VERSION)}\.', text)
    assert said
