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
"""Guests outlive their agent: kills, crashes, upgrades under load.

The clients here are verified writers on the mount; tests/e2e has a guest.
``LAZYIMAGE_SOAK_KILLS`` makes the longest of them longer (``make soak``).
"""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time
import uuid

import pytest

from nova_lazyimage.agent import client
from tests.functional.agent import takeover

MIB = 1024 * 1024
DISK_BYTES = 12 * MIB
KILLS = int(os.environ.get('LAZYIMAGE_SOAK_KILLS', '24'))
# A death and what follows it, on a busy machine or a slow one.
KILL_SECONDS_MAX = 0.2 * takeover.READY_SECONDS_MAX
SECONDS_MAX = 2 * takeover.READY_SECONDS_MAX + KILL_SECONDS_MAX * KILLS


@pytest.fixture
def kept(site):
    """An agent under the holder."""
    return takeover.Kept(site)


@pytest.fixture
def load(tmp_path):
    """Starts verified writers; none of them outlives the test."""
    started = []

    def start(path, **options):
        made = takeover.Load(tmp_path, path, seed=len(started) + 1, **options)
        started.append(made)
        return made

    yield start
    for made in started:
        made.close()


def attach(site, noise, key):
    image = site.image(noise(DISK_BYTES))
    return site.client.attach(*key, clone_blob=image)['path']


class TestKills:
    @pytest.mark.soak
    @pytest.mark.timeout(SECONDS_MAX)
    def test_no_kill_is_an_error_or_a_wrong_byte(
        self, site, kept, noise, key, load, rng
    ):
        disks = [key, (str(uuid.uuid4()), 'disk')]
        loads = [load(attach(site, noise, disk)) for disk in disks]
        while len(kept.deaths) < KILLS:
            time.sleep(rng.uniform(0.0, 0.6))
            kept.strike()
            if rng.random() < 0.2:
                # The next one dies before it is ready, wherever it is.
                kept.strike_again(rng.uniform(0.0, 1.0))
            found = kept.wait_until_ready()
            assert found['resumed']
            assert all(one.is_running for one in loads)
        reports = [one.end() for one in loads]
        print(takeover.describe(kept.deaths, reports))
        assert min(takeover.stalls(kept.deaths, reports)) > 0, (
            'a kill held nothing up: was there a load?'
        )

    def test_a_commit_dies_and_its_blocks_are_dirty_while_writers_go_on(
        self, site, kept, noise, key, load
    ):
        path = attach(site, noise, key)
        writer = load(path)
        wait_for(lambda: site.client.mirror(*key)['dirty_bytes'] > MIB)
        site.tell('store-slow', '0.3')
        commit_id = str(uuid.uuid4())
        site.client.commit(*key, commit_id=commit_id)
        kept.strike()
        kept.wait_until_ready()
        site.untell('store-slow')
        with pytest.raises(client.CommitFailed, match='restarted'):
            site.client.wait_for_commit(*key, commit_id, 30)
        assert site.client.mirror(*key)['dirty_bytes'] > MIB
        writer.end()
        image = str(uuid.uuid4())
        site.commit(key, image)
        assert site.read(image) == pathlib.Path(path).read_bytes()

    def test_faster_than_a_start_limit_nothing_is_lost(
        self, site, kept, noise, key, load
    ):
        """Systemd allows five starts in ten seconds; here none comes up."""
        writer = load(attach(site, noise, key))
        time.sleep(0.3)
        kept.strike()
        # It names itself early, so none of these comes to serve.
        until = time.monotonic() + takeover.READY_SECONDS_MAX
        while len(kept.deaths) < 6:
            assert time.monotonic() < until
            kept.strike_again(0.05)
        assert kept.wait_until_ready()['resumed']
        writer.end()

    def test_a_read_that_waits_for_the_store_waits_on(
        self, site, kept, noise, key
    ):
        data = noise(DISK_BYTES)
        path = kept.client.attach(*key, clone_blob=site.image(data))['path']
        site.tell('store-away')
        reader = subprocess.Popen(
            [
                sys.executable,
                '-c',
                f'import sys; f = open({path!r}, "rb", 0); '
                f'f.seek({MIB // 2}); sys.stdout.buffer.write(f.read(65536))',
            ],
            stdout=subprocess.PIPE,
        )
        wait_for(lambda: kept.status().get('store_away'))
        for _ in range(2):
            kept.strike()
            kept.wait_until_ready()
        assert reader.poll() is None
        site.untell('store-away')
        assert (
            reader.communicate(timeout=30)[0]
            == (data[MIB // 2 : MIB // 2 + 65536])
        )


class TestHandOver:
    def test_an_upgrade_under_load_is_no_error(
        self, site, kept, noise, key, load
    ):
        writer = load(attach(site, noise, key))
        for _ in range(3):
            time.sleep(0.3)
            kept.renew()
            assert kept.wait_until_ready()['resumed']
        report = writer.end()
        print(takeover.describe(kept.deaths, [report]))
        assert 'Stopped for a successor' in site.log()

    def test_old_and_new_build_take_over_from_each_other(
        self, site, noise, key, load, tmp_path
    ):
        other = takeover.other_build(tmp_path)
        kept = takeover.Kept(
            site, takeover.alternating(tmp_path, [takeover.ROOT, other])
        )
        writer = load(attach(site, noise, key))
        builds = []
        for number in range(6):
            builds.append(build_of(kept.pid))
            time.sleep(0.2)
            if number % 2:
                kept.renew()
            else:
                kept.strike()
            assert kept.wait_until_ready()['resumed']
        writer.end()
        assert builds == [str(takeover.ROOT), str(other)] * 3

    def test_an_end_for_good_takes_the_mount_and_the_next_start_has_all(
        self, site, kept, noise, key
    ):
        path = pathlib.Path(attach(site, noise, key))
        with path.open('r+b', buffering=0) as file:
            file.write(b'written')
        before = path.read_bytes()
        assert kept.stop() == 0
        assert not path.exists()
        assert not mounted(site)
        again = takeover.Kept(site)
        assert not again.status()['resumed']
        assert path.read_bytes() == before

    def test_without_a_disk_an_agent_has_nothing_to_hand_over(
        self, site, kept
    ):
        os.kill(kept.pid, signal.SIGTERM)
        assert kept.holder.wait(30) == 0
        assert not mounted(site)


class TestRefusals:
    def test_with_a_live_map_gone_a_session_is_ended_and_never_resumed(
        self, site, kept, noise, key
    ):
        """Its guest would read what it had overwritten (contract 4)."""
        path = attach(site, noise, key)
        descriptor = os.open(path, os.O_RDWR)
        os.pwrite(descriptor, b'acknowledged' * 50, 12345)
        kept.strike()
        for live in (site.state / 'run' / 'live').iterdir():
            live.unlink()
        assert not kept.wait_until_ready()['resumed']
        with pytest.raises(OSError):
            os.pread(descriptor, 4096, 0)
        with contextlib.suppress(OSError):
            os.close(descriptor)
        assert len(pathlib.Path(path).read_bytes()) == DISK_BYTES
        assert 'is ended: the live map' in site.log()

    def test_a_start_asks_neither_store_nor_catalog(
        self, site, kept, noise, key, load
    ):
        data = noise(DISK_BYTES)
        path = kept.client.attach(*key, clone_blob=site.image(data))['path']
        assert pathlib.Path(path).read_bytes() == data
        writer = load(path)
        site.tell('catalog-away')
        site.tell('store-away')
        kept.strike()
        kept.wait_until_ready()
        writer.end()

    def test_an_agent_that_nobody_handed_the_session_refuses_to_start(
        self, site, kept, noise, key
    ):
        """It would wait for itself if it looked at the mount."""
        attach(site, noise, key)
        kept.holder.send_signal(signal.SIGSTOP)
        kept.strike()
        done = subprocess.run(
            [sys.executable, str(takeover.FAULTY_AGENT), *site.arguments],
            env=site.environment(),
            capture_output=True,
            text=True,
            timeout=60,
        )
        kept.holder.send_signal(signal.SIGCONT)
        assert done.returncode == 1
        assert 'waits for an agent' in done.stderr
        assert kept.wait_until_ready()['resumed']


class TestOpenFiles:
    def test_one_opened_before_a_death_is_known_until_it_is_closed(
        self, site, noise, key
    ):
        """Deaths between a count and its answer, of opens and of closes."""
        site.more['LAZYIMAGE_KILL_AT'] = 'counted:2'
        kept = takeover.Kept(site)
        path = attach(site, noise, key)
        with open(path, 'rb'):
            open(path, 'rb').close()
            # One death by the open, and one by the close.
            takeover.until(
                lambda: site.log().count('SIGKILL') == 2, 30, 'second death'
            )
            kept.wait_until_ready()
            with pytest.raises(client.Conflict, match='is open'):
                site.client.revert(*key, 1)
        takeover.until(
            lambda: site.log().count('SIGKILL') == 3, 30, 'third death'
        )
        kept.wait_until_ready()
        site.client.revert(*key, 1)


def wait_for(condition):
    takeover.until(condition, 30, 'such thing')


def mounted(site):
    table = pathlib.Path('/proc/self/mountinfo').read_text()
    return str(site.state / 'mnt') in table


def build_of(pid):
    environment = pathlib.Path(f'/proc/{pid}/environ').read_bytes()
    for line in environment.split(b'\0'):
        if line.startswith(b'LAZYIMAGE_BUILD='):
            return line.partition(b'=')[2].decode()
    return ''
