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
"""The repository's comparisons work; no test looks at their figures."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[3]


@pytest.mark.parametrize(
    ('name', 'mib', 'only'),
    [
        ('import', 8, '^sparse time$'),
        ('snapshot', 1, '^(together|diff|stored by clones)$'),
        ('glance', 4, '^sparse download warm$'),
    ],
)
def test_a_round_of_little_data(name, mib, only, tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, '-m', 'bench', name, '--smoke'),
            *('--only', only),
            *('--work', str(tmp_path)),
        ],
        cwd=ROOT,
        env={
            **os.environ,
            'LAZYIMAGE_BENCH_MIB': str(mib),
            'LAZYIMAGE_BENCH_VERSIONS': '3',
            'LAZYIMAGE_BENCH_CLONES': '2',
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert ' measured' in done.stdout
