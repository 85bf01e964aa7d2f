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
"""Many mirrors in one process: what grows with their number, and what not."""

import pathlib
import shutil
import tempfile

import pytest

from bench import scale

MIRRORS = 200
PRIVATE_BYTES_MAX = 2 << 20


@pytest.fixture
def folders(tmp_path):
    live = pathlib.Path(tempfile.mkdtemp(dir=scale.LIVE))
    yield tmp_path / 'state', live
    shutil.rmtree(live)


@pytest.fixture
def found(folders, monkeypatch):
    """What the process says that serves again after a kill."""
    monkeypatch.setattr(scale, 'IDLE_SECONDS', 2.0)
    scale.attach(*folders, MIRRORS)
    return scale.attach(*folders, MIRRORS)


def test_mirrors_take_little_memory_and_no_threads(found):
    assert found['private_bytes'] / MIRRORS <= PRIVATE_BYTES_MAX
    assert found['threads'] == found['threads_before']
    # CPU time, not time: a loaded machine changes little of it. Two seconds
    # of one that polls each mirror ten times a second would take half of it.
    assert found['idle_cpu_seconds'] < 0.2
