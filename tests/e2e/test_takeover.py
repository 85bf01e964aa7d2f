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
"""A running guest does not notice that its agent is killed or upgraded."""

import contextlib
import os
import re
import signal
import time

import parts
import pytest
from cloud import agent
from cloud.tenant import until

KILLS_MIN = 8
# Each round writes a file through to the disk, and reads eight from it.
ROUNDS = 60
WRITE_AND_VERIFY = f"""\
mount -t tmpfs tmpfs /tmp
mkdir -p /var/takeover
echo 'TAKEOVER begins'
round=0
while [ $round -lt {ROUNDS} ]; do
    slot=$((round % 8))
    head -c 262144 /dev/urandom >/tmp/new
    cp /tmp/new /var/takeover/$slot && sync ||
        echo "GUEST-FAILED cannot write in round $round"
    md5sum </tmp/new >/tmp/sum.$slot
    echo 3 >/proc/sys/vm/drop_caches
    for sum in /tmp/sum.*; do
        md5sum </var/takeover/${{sum##*.}} | cmp -s - $sum ||
            echo "GUEST-FAILED ${{sum##*.}} differs in round $round"
    done
    round=$((round + 1))
done
echo "TAKEOVER verified=$round"
"""


def status():
    with contextlib.suppress(OSError):
        return agent.get('/v1/status')
    return {}


def successor(pid):
    """What the agent after that one says when it is ready."""

    def is_ready():
        found = status()
        return found if found.get('ready') and found['pid'] != pid else None

    return until(is_ready, 60, f'a successor of agent {pid}')


@pytest.mark.expect_errors(
    # What nova-compute asks for just then.
    'agent',
    'Sizes of lazy disks are not known',
    'Error updating resources',
)
def test_a_guest_that_writes_sees_no_error_of_killed_agents(cloud, demo, base):
    if not status()['kept']:
        pytest.skip('this engine cannot hand its session over')
    guest = parts.Guest(
        demo, demo.boot('taken', base['id'], 'tiny', WRITE_AND_VERIFY)
    )
    guest.ready()
    until(
        lambda: 'TAKEOVER begins' in demo.console(guest.id),
        60,
        'the guest to write',
    )
    ends = 0
    while 'TAKEOVER verified' not in demo.console(guest.id):
        pid = status()['pid']
        if ends % 4 == 3:
            cloud['lazyimage-agent'].signal(signal.SIGHUP)
        else:
            os.kill(pid, signal.SIGKILL)
        assert successor(pid)['resumed']
        ends += 1
        time.sleep(0.3)
    assert ends >= KILLS_MIN, 'the guest wrote too little to prove a thing'
    text = demo.console(guest.id)
    assert 'GUEST-FAILED' not in text
    assert f'TAKEOVER verified={ROUNDS}' in text
    assert not re.search('I/O error|EXT4-fs error|remounting', text)
    demo.delete_server(guest.id)
