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
"""What the agent loads, and when: guests wait while a successor loads."""

import subprocess
import sys


def run(program):
    done = subprocess.run(
        [sys.executable, '-c', program],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_what_no_disk_needs_is_not_loaded_before_disks_are_served():
    late = {
        'http.server',
        'lazyblob.repository',
        'nova_lazyimage.agent.network',
        'obstore',
        'oslo_messaging',
        'oslo_service',
        'prometheus_client',
        'sqlalchemy',
    }
    loaded = run(
        'import sys, nova_lazyimage.cmd.agent; print(*sorted(sys.modules))'
    )
    assert 'nova_lazyimage.agent.session' in loaded
    assert late.intersection(loaded) == set()


def test_eventlet_is_never_imported():
    loaded = run(
        'from nova_lazyimage.cmd import threads; threads.use_native()\n'
        'import sys, nova_lazyimage.conductor.rpcapi\n'
        'print(*[name for name, module in sys.modules.items() if module])'
    )
    assert 'oslo_messaging' in loaded
    assert not [name for name in loaded if name.startswith('eventlet')]
