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
"""An import's memory does not depend on the image's size.

A process of its own, so that the peak is its own. The stream is made on the
fly and compresses well: nothing but the import holds memory.
"""

import subprocess
import sys

SCRIPT = """
import sys
from lazyblob import repository

# Not ru_maxrss: after a vfork it has the parent's peak in it.
def kib(field):
    for line in open('/proc/self/status'):
        if line.startswith(field + ':'):
            return int(line.split()[1])

def stream(count):
    for index in range(count):
        yield index.to_bytes(8, 'little') * (1 << 17)

url, count = sys.argv[1], int(sys.argv[2])
repo = repository.initialise(*repository.urls_of(url))
# Loads and warms up whatever an import needs.
repo.create(stream(8), blob_id='small', threads=2)
with open('/proc/self/clear_refs', 'w') as refs:
    refs.write('5')
before = kib('VmRSS')
version = repo.create(stream(count), blob_id='large', threads=2)
assert version.size_bytes == count << 20
print(before, kib('VmHWM') - before)
"""
# Chunks under way (two threads, three each, twice while compressed) and what
# the allocator keeps; the images are 64 MiB and 1 GiB.
GROWTH_KIB_MAX = 24 << 10


def growth_kib(tmp_path, count):
    done = subprocess.run(
        [
            *(sys.executable, '-c', SCRIPT),
            (tmp_path / str(count)).as_uri(),
            str(count),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    before, grown = map(int, done.stdout.split())
    assert before > 20 << 10, 'that is not a whole process: proves nothing'
    return grown


def test_a_large_image_takes_no_more_memory_than_a_small_one(tmp_path):
    small = growth_kib(tmp_path, 64)
    large = growth_kib(tmp_path, 1024)
    print(f'peak grows by {small} KiB for 64 MiB, {large} KiB for 1 GiB')
    assert small < GROWTH_KIB_MAX
    assert large < GROWTH_KIB_MAX
