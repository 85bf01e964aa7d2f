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
"""The unit file under a real systemd keeps guests going."""

import pathlib
import subprocess
import time

import pytest

from tests.functional.agent import service_manager
from tests.functional.agent import takeover

MIB = 1024 * 1024
DISK_BYTES = 8 * MIB
# That a unit may keep descriptors over a stop.
PRESERVE_VERSION = 254


@pytest.fixture
def serviced(site, tmp_path):
    if not service_manager.is_there():
        pytest.skip('needs root and systemd')
    manager = service_manager.Manager(tmp_path)
    yield service_manager.Serviced(manager, site)
    manager.close()


@pytest.fixture
def load(serviced, site, noise, key, tmp_path):
    image = site.image(noise(DISK_BYTES))
    path = serviced.client.attach(*key, clone_blob=image)['path']
    made = takeover.Load(tmp_path, serviced.manager.view(path))
    yield made
    made.close()


def is_mounted(serviced):
    table = pathlib.Path(f'/proc/{serviced.manager.pid}/mountinfo')
    return str(serviced.site.state / 'mnt') in table.read_text()


def test_kills_beyond_the_start_limit_are_no_error(serviced, load):
    """Systemd's own limit is five starts in ten seconds."""
    assert serviced.status()['kept']
    started = time.monotonic()
    for _ in range(8):
        serviced.strike()
        assert serviced.wait_until_ready()['resumed']
    seconds = time.monotonic() - started
    report = load.end()
    print(takeover.describe(serviced.deaths, [report]), f'in {seconds:.0f} s')


def test_a_restart_is_an_upgrade_and_no_error(serviced, load):
    for _ in range(2):
        serviced.deaths.append(time.time())
        serviced.manager.control('restart', service_manager.NAME)
        assert serviced.wait_until_ready()['resumed']
    load.end()
    assert 'Stopped for a successor' in serviced.site.log()


def test_over_a_stop_guests_wait(serviced, load):
    if service_manager.version() < PRESERVE_VERSION:
        pytest.skip(f'needs systemd {PRESERVE_VERSION}')
    serviced.manager.control('stop', service_manager.NAME)
    time.sleep(1)
    assert load.is_running
    serviced.manager.control('start', service_manager.NAME)
    assert serviced.wait_until_ready()['resumed']
    load.end()


def test_a_stop_without_disks_takes_the_mount_away(serviced):
    assert is_mounted(serviced)
    serviced.manager.control('stop', service_manager.NAME)
    assert not is_mounted(serviced)


def test_the_unit_file_is_understood(tmp_path):
    if not service_manager.is_there():
        pytest.skip('needs root and systemd')
    text = service_manager.UNIT.read_text()
    text = text.replace('/usr/bin/lazyimage-agent', '/bin/true')
    text = text.replace('Documentation=', '# ')
    path = tmp_path / service_manager.NAME
    path.write_text(text)
    done = subprocess.run(
        ['systemd-analyze', 'verify', str(path)],
        capture_output=True,
        text=True,
    )
    said = [
        line
        for line in done.stderr.splitlines()
        if 'FileDescriptorStorePreserve' not in line
        or service_manager.version() >= PRESERVE_VERSION
    ]
    assert said == []


def test_the_units_of_the_scrub_are_understood(tmp_path):
    if not service_manager.is_there():
        pytest.skip('needs root and systemd')
    for name in ('lazyimage-verify.service', 'lazyimage-verify.timer'):
        text = service_manager.UNIT.with_name(name).read_text()
        text = text.replace('/usr/bin/lazyimage ', '/bin/true ')
        text = text.replace('Documentation=', '# ')
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        [
            'systemd-analyze',
            'verify',
            str(tmp_path / 'lazyimage-verify.timer'),
        ],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, '')
