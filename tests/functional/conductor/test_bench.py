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
"""The conductor's comparison works; no test looks at its figures."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[3]


def test_a_round_of_few_calls(tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, '-m', 'bench', 'conductor', '--smoke'),
            *('--work', str(tmp_path)),
        ],
        cwd=ROOT,
        env={**os.environ, 'LAZYIMAGE_BENCH_CALLS': '8'},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert ' measured' in done.stdout
