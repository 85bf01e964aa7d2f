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
"""Started as root: mounts, then serves as somebody who may do nothing."""

import contextlib
import grp
import os
import pathlib
import pwd
import re
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import uuid

import pytest

from lazyblob import repository
from nova_lazyimage.agent import client

MIB = 1024 * 1024
USER, GROUP = 'nobody', 'daemon'
PF_MEMALLOC_NOIO = 0x00080000  # linux/sched.h
CAP_SYS_RESOURCE = 24


@pytest.fixture
def configured(site):
    """The same site, served as on a compute node: by a file."""
    if os.geteuid() != 0:
        pytest.skip('needs root, to be started as root')
    # A short path that everybody may enter, as /run and /var/lib are.
    folder = pathlib.Path(tempfile.mkdtemp(prefix='lazyimage-', dir='/run'))
    folder.chmod(0o755)
    site.folder.chmod(0o755)
    for parent in site.folder.parents:
        if not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o001)
    site.state = folder / 'state'
    chunks, catalog = repository.urls_of(site.url)
    user = pwd.getpwnam(USER)
    for path in (site.folder / 'repository').rglob('*'):
        os.chown(path, user.pw_uid, user.pw_gid)
    os.chown(site.folder / 'repository', user.pw_uid, user.pw_gid)
    path = folder / 'lazyimage.conf'
    path.write_text(
        f'[repository]\nchunk_store = {chunks}\ncatalog = {catalog}\n'
        f'[agent]\nuser = {USER}\nsocket_group = {GROUP}\n'
        f'state_directory = {folder}/state\nrun_directory = {folder}/run\n'
        f'mount_root = {folder}/state/mnt\n'
        f'socket = {folder}/run/agent.sock\n'
    )
    site.arguments = ['--config-file', str(path)]
    site.client = client.AgentClient(f'{folder}/run/agent.sock', 20)
    yield site
    site.close()
    subprocess.run(['rm', '-rf', '--one-file-system', folder], check=True)


def need_python_for_everybody():
    """The agent loads modules after it gave its privileges up."""
    for path in (os.path.realpath(sys.executable), os.__file__):
        for folder in pathlib.Path(path).parents:
            if not folder.stat().st_mode & 0o001:
                pytest.skip(
                    f'{sys.executable} lies below {folder}, which only its '
                    'owner may enter'
                )


def as_user(site, uid, gid, program):
    """Run a piece of Python as somebody; its exit status."""
    prefix = (
        'import os, pathlib, sys\n'
        'from nova_lazyimage.agent import client\n'
        f'os.setgroups([{gid}]); os.setgid(65534); os.setuid({uid})\n'
        f'agent = client.AgentClient({site.client.socket_path!r}, 10)\n'
    )
    return subprocess.run(
        [sys.executable, '-c', prefix + program],
        env=site.environment(),
        capture_output=True,
        text=True,
    )


class TestPrivileges:
    def test_it_serves_as_its_user_with_no_capability(self, configured):
        configured.start()
        status = pathlib.Path(
            f'/proc/{configured.agent.process.pid}/status'
        ).read_text()
        fields = dict(
            line.split(':\t', 1)
            for line in status.splitlines()
            if ':\t' in line
        )
        uid = str(pwd.getpwnam(USER).pw_uid)
        assert fields['Uid'].split() == [uid] * 4
        assert int(fields['CapEff'], 16) == int(fields['CapPrm'], 16) == 0
        tasks = pathlib.Path(f'/proc/{configured.agent.process.pid}/task')
        looked_at = 0
        for task in tasks.iterdir():
            # A pool's thread may end between the listing and the look.
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                text = (task / 'status').read_text()
                assert f'CapEff:\t{0:016x}' in text
                looked_at += 1
        assert looked_at

    def test_reclaim_waits_for_no_thread_of_it(self, configured):
        """Memory that its own writes would free must not be waited for."""
        configured.start()
        process = pathlib.Path(f'/proc/{configured.agent.process.pid}')
        status = (process / 'status').read_text()
        assert int(re.search(r'VmLck:\s+(\d+) kB', status)[1]) > 0
        # A host may keep even root from saying more to the kernel.
        bounds = int(re.search(r'CapBnd:\s+(\w+)', status)[1], 16)
        expected = PF_MEMALLOC_NOIO if bounds >> CAP_SYS_RESOURCE & 1 else 0
        looked_at = 0
        for task in (process / 'task').iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                stat = (task / 'stat').read_text()
                # proc(5): the ninth, behind a name that may hold anything.
                flags = int(stat.rpartition(')')[2].split()[6])
                assert flags & PF_MEMALLOC_NOIO == expected, stat
                looked_at += 1
        assert looked_at

    def test_a_member_of_the_group_attaches_and_owns_the_disk(
        self, configured, noise
    ):
        need_python_for_everybody()
        data = noise(MIB)
        configured.start()
        image = configured.image(data)
        gid = grp.getgrnam(GROUP).gr_gid
        instance = str(uuid.uuid4())
        for path in (pathlib.Path(configured.folder) / 'repository').rglob(
            '*'
        ):
            os.chown(path, pwd.getpwnam(USER).pw_uid, -1)
        done = as_user(
            configured,
            4242,
            gid,
            f'm = agent.attach({instance!r}, "disk", clone_blob={image!r})\n'
            'print(m["path"])\n',
        )
        assert done.returncode == 0, done.stderr
        path = pathlib.Path(done.stdout.strip())
        assert path.stat().st_uid == 4242
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.read_bytes() == data
        stranger = as_user(
            configured, 4243, 65534, f'open({str(path)!r}, "rb")'
        )
        assert 'PermissionError' in stranger.stderr
        configured.restart_killed()
        assert path.read_bytes() == data
        assert path.stat().st_uid == 4242

    def test_a_stranger_cannot_even_connect(self, configured):
        configured.start()
        done = as_user(configured, 4243, 65534, 'agent.status()')
        assert 'PermissionError' in done.stderr or 'denied' in done.stderr

    def test_only_the_group_leaves_tombstones(self, configured):
        configured.start()
        released = configured.state / 'released'
        gid = grp.getgrnam(GROUP).gr_gid
        assert stat.S_IMODE(released.stat().st_mode) == 0o2770
        tombstone = str(released / str(uuid.uuid4()))
        program = f'pathlib.Path({tombstone!r}).touch()'
        assert as_user(configured, 4242, gid, program).returncode == 0
        assert as_user(configured, 4243, 65534, program).returncode == 1

    def test_state_is_readable_by_nobody_else(self, configured):
        configured.start()
        for name in ('mirrors', 'cache', 'journal', 'manifests'):
            mode = (configured.state / name).stat().st_mode
            assert stat.S_IMODE(mode) == 0o700

    def test_a_user_that_does_not_exist_is_named(self, configured, tmp_path):
        path = pathlib.Path(configured.arguments[1])
        path.write_text(path.read_text().replace(USER, 'nosuchuser'))
        done = subprocess.run(
            [
                sys.executable,
                '-m',
                'nova_lazyimage.cmd.agent',
                *configured.arguments,
            ],
            env=configured.environment(),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 1
        assert 'user "nosuchuser" does not exist' in done.stderr


def test_readiness_is_told_to_the_service_manager(site, tmp_path):
    said = []

    def listen(manager):
        while not said or said[-1] != b'STOPPING=1':
            said.append(manager.recv(4096))

    with tempfile.TemporaryDirectory() as folder:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(f'{folder}/notify')
            manager.settimeout(60)
            site.more['NOTIFY_SOCKET'] = f'{folder}/notify'
            listener = threading.Thread(target=listen, args=(manager,))
            listener.start()
            site.start()
            site.stop()
            listener.join(60)
    ready = [text for text in said if text.startswith(b'READY=1\n')]
    assert len(ready) == 1
