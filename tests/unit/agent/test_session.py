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
"""Whose session is resumed, and whose is ended; in which order."""

import errno
import pathlib

import pytest

from lazyblob import exceptions
from nova_lazyimage.agent import checks
from nova_lazyimage.agent import session
from nova_lazyimage.agent import state


class Said(list):
    """Engine and keeper in one: what they were asked, in order."""

    def __init__(self, **given):
        super().__init__()
        self.descriptors = {
            f'lazyimage-{name}': number for name, number in given.items()
        }
        self.keeps = bool(given)
        self.raised = {}

    def _note(self, name):
        self.append(name)
        if name in self.raised:
            raise self.raised[name]

    def resume(self, at, device, memory):
        self._note('resume')
        assert (device, memory) == (7, 8)

    def serve(self):
        self._note('serve')

    def mount(self, at):
        self._note('mount')

    def unmount(self):
        self._note('unmount')

    def abandon_session(self):
        self._note('abandon')

    def session_descriptors(self):
        return 9, 10

    def give(self, descriptors):
        self._note('give')
        self.descriptors_given = descriptors
        self.keeps = True
        return True

    def forget(self, names):
        self._note('forget')
        self.keeps = False
        self.descriptors.clear()


@pytest.fixture
def mounted(monkeypatch):
    """What the table of mounts says."""
    found = {'kind': session.KIND}
    monkeypatch.setattr(checks, 'mount_kind', lambda path: found['kind'])
    monkeypatch.setattr(session.host, 'abort_mount', lambda path: None)
    return found


def begun(said, attach=None):
    folders = state.Folders(*map(pathlib.Path, ('/s', '/r', '/m')))
    made = session.Session(said, said, folders)

    def attach_all():
        said.append('attach')
        if attach is not None:
            raise attach

    if not made.resume(attach_all):
        made.mount()
    return made


def test_every_disk_is_attached_before_the_first_request_is_served(mounted):
    said = Said(device=7, memory=8)
    made = begun(said)
    assert said == ['resume', 'attach', 'serve']
    assert made.resumed
    assert made.kept


def test_without_descriptors_there_is_a_new_session_and_it_is_kept(mounted):
    mounted['kind'] = ''
    said = Said()
    made = begun(said)
    assert said == ['mount', 'give']
    assert said.descriptors_given == {session.DEVICE: 9, session.MEMORY: 10}
    assert made.kept
    assert not made.resumed


@pytest.mark.parametrize('given', [{'device': 7}, {'memory': 8}])
def test_half_a_session_is_ended(mounted, expect_logs, given):
    said = Said(**given)
    with expect_logs('session .* is ended: its descriptor'):
        begun(said)
    assert said == ['forget', 'mount', 'give']


def test_a_session_that_is_mounted_no_more_is_ended(mounted, expect_logs):
    mounted['kind'] = ''
    said = Said(device=7, memory=8)
    with expect_logs('not mounted there any more'):
        begun(said)
    assert said == ['forget', 'mount', 'give']


@pytest.mark.parametrize(
    'refused',
    [ValueError('torn'), OSError(errno.ENOTCONN, 'ended')],
)
def test_a_session_that_the_engine_refuses_is_ended(
    mounted, expect_logs, refused
):
    said = Said(device=7, memory=8)
    said.raised['resume'] = refused
    with expect_logs('session .* is ended'):
        begun(said)
    assert said == ['resume', 'forget', 'mount', 'give']


def test_a_session_that_another_process_serves_is_let_alone(mounted):
    said = Said(device=7, memory=8)
    said.raised['resume'] = OSError(errno.EBUSY, 'served')
    with pytest.raises(OSError, match='served'):
        begun(said)
    assert said == ['resume']


def test_with_a_live_map_gone_the_session_is_ended_before_it_serves(
    mounted, expect_logs
):
    """The keeper's copies first: a death after that finds none."""
    said = Said(device=7, memory=8)
    with expect_logs('live map'):
        made = begun(said, session.Lost('the live map is gone'))
    assert said == ['resume', 'attach', 'forget', 'abandon', 'mount', 'give']
    assert not made.resumed


def test_an_end_for_good_unmounts_before_the_keeper_forgets(mounted):
    said = Said(device=7, memory=8)
    made = begun(said)
    made.close()
    assert said[-2:] == ['unmount', 'forget']


def test_a_mount_that_waits_for_another_agent_refuses_the_start(mounted):
    said = Said()
    said.raised['mount'] = TimeoutError(errno.ETIMEDOUT, 'no answer')
    with pytest.raises(exceptions.InvalidConfiguration, match='umount'):
        begun(said)
    assert said == ['mount']
