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
"""How the agent's tests use a disk's file, as a guest would."""

import pathlib

MIB = 1024 * 1024


def write(path, offset, data):
    """Write all the bytes; they are not flushed."""
    with open(path, 'r+b', buffering=0) as file:
        file.seek(offset)
        assert file.write(data) == len(data)


def read(path):
    """All of its bytes."""
    return pathlib.Path(path).read_bytes()
