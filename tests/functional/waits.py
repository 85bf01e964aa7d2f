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
"""What the functional tests wait for: conditions, and mounts."""

import pathlib
import subprocess
import time

PAUSE_SECONDS = 0.005


def wait_for(condition, what, seconds=20.0):
    """Wait until a condition holds; what it answered.

    :param what: for the message of the test that waited in vain
    """
    until = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < until, f'waited in vain for {what}'
        time.sleep(PAUSE_SECONDS)


def is_mounted(path):
    """Whether a path is a mount point; it is not looked at itself."""
    lines = pathlib.Path('/proc/self/mountinfo').read_text().splitlines()
    return any(line.split()[4] == str(path) for line in lines)


def unmount(path):
    """Take a mount away, be it dead or in use; harmless if there is none."""
    if is_mounted(path):
        subprocess.run(['umount', '--lazy', str(path)], check=True)
