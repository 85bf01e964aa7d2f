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
"""Tombstones of servers that were deleted while the agent was away."""

import threading
from unittest import mock

from nova_lazyimage.agent import releases

SERVER = '6f70656e-7374-4163-8b20-6c617a79696d'


def test_a_tombstone_is_obeyed_once_though_two_threads_settle_it(tmp_path):
    """The second, an attach, goes on only when the first is through."""
    folders = mock.Mock(released=tmp_path)
    (tmp_path / SERVER).touch()
    subject = releases.Releases(
        mock.Mock(),
        mock.Mock(),
        mock.Mock(),
        mock.Mock(),
        mock.Mock(),
        folders,
    )
    seen, go_on = threading.Event(), threading.Event()
    released = []

    def release_instance(instance):
        released.append(instance)
        seen.set()
        assert go_on.wait(10)

    subject.release_instance = release_instance
    reconciler = threading.Thread(target=subject.settle, args=(SERVER,))
    reconciler.start()
    assert seen.wait(10)
    attach = threading.Thread(target=subject.settle, args=(SERVER,))
    attach.start()
    attach.join(0.2)
    assert attach.is_alive()
    go_on.set()
    attach.join(10)
    reconciler.join(10)

    assert released == [SERVER]
    assert not (tmp_path / SERVER).exists()
