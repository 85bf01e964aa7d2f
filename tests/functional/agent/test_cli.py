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
"""``lazyimage attach``, ``commit``, ``detach``: without any cloud."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest


LAZYIMAGE = """\
import sys
sys.path.remove('')
from nova_lazyimage.cmd import lazyimage
sys.exit(lazyimage.main())
"""


@pytest.fixture
def checkout(tmp_path):
    """Where people stand: in a tree whose engine was not built."""
    folder = tmp_path / 'checkout'
    folder.mkdir()
    (folder / 'nova_lazyimage.py').write_text('raise ImportError("no engine")')
    return folder


@pytest.fixture
def run(site, tmp_path, checkout):
    environment = {
        **site.environment(),
        'LAZYIMAGE_REPOSITORY': site.url,
        'XDG_STATE_HOME': str(tmp_path / 'home'),
    }

    def run(*arguments, status=0):
        done = subprocess.run(
            [sys.executable, '-c', LAZYIMAGE, *arguments],
            env=environment,
            cwd=checkout,
            capture_output=True,
            text=True,
            timeout=90,
        )
        assert done.returncode == status, done.stderr
        return (done.stdout or done.stderr).strip()

    yield run
    for line in run('status').splitlines()[1:]:
        run('detach', '--discard', line.split()[0])


def test_a_disk_is_attached_written_committed_and_given_up(
    run, site, noise, tmp_path
):
    data = noise(1024 * 1024)
    site.repository.create([data], blob_id='blob', name='demo')
    path = pathlib.Path(run('attach', 'demo'))
    assert path.read_bytes() == data
    assert run('attach', 'demo') == str(path)
    with path.open('r+b') as file:
        file.write(b'written')
    assert 'never committed' in run('detach', 'demo', status=1)
    run('commit', 'demo')
    run('commit', 'demo', '--name', 'copy')
    expected = b'written' + data[7:]
    versions = site.repository.catalog.versions('blob')
    assert site.read('blob', versions[-1].number) == expected
    assert site.read(site.repository.catalog.find('copy').id) == expected
    assert 'attached' in run('delete', 'demo', status=1)
    old = pathlib.Path(run('attach', 'demo@1', '--as', 'old'))
    assert old.read_bytes() == data
    told = json.loads(run('status', 'old', '--output=json'))
    assert told['reads'] and told['latencies'] and told['waits'] == []
    assert re.search('^read +(cache|fetch) ', run('status', 'old'), re.M)
    run('detach', 'old')
    assert path.read_bytes() == expected
    run('detach', 'demo')
    # The agent that attach started ends with its last disk.
    mounts = pathlib.Path('/proc/self/mountinfo').read_text()
    assert str(path.parents[1]) not in mounts
    assert not os.path.exists(path)
    run('delete', 'demo')
