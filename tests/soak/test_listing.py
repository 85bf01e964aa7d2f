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
"""A million objects are listed in bounded memory, each once.

``LAZYIMAGE_SOAK_KEYS`` says how many there are; a tenth of it on the object
gateway, whose puts take longer. What that tells of a million: a page is asked
for by the key before it, and what the gateway does for one does not depend on
how many there are.
"""

import os
import pathlib
import time

import pytest

from lazyblob.chunk_store import file
from lazyblob.chunk_store import objects
from tests.functional.lazyblob import conftest as servers

KEYS = int(os.environ.get('LAZYIMAGE_SOAK_KEYS', '1000000'))
MEMORY_BYTES_MAX = 64 << 20
AT_ONCE = 10_000


def name_of(number):
    # The first byte is the folder: spread over all of them.
    return bytes([number % 256, 0]) + number.to_bytes(30, 'big')


def memory(what):
    """Bytes of this process: VmRSS now, VmHWM at most since it was reset."""
    for line in pathlib.Path('/proc/self/status').read_text().splitlines():
        if line.startswith(f'{what}:'):
            return 1024 * int(line.split()[1])
    raise AssertionError(f'no {what}')


def list_all(store, count):
    """Counts and sums what is listed; its seconds and memory."""
    # What filling took is no measure: it may have been more.
    pathlib.Path('/proc/self/clear_refs').write_text('5')
    before = memory('VmRSS')
    begin = time.monotonic()
    found = total = 0
    for name, _size in store.list():
        found += 1
        total += int.from_bytes(name[2:], 'big')
    seconds = time.monotonic() - begin
    more = memory('VmHWM') - before
    print(
        f'{found} objects of {store.url} listed in {seconds:.1f} s, '
        f'{found / seconds:.0f}/s, {more / 2**20:.0f} MiB more memory'
    )
    assert (found, total) == (count, count * (count - 1) // 2)
    assert more < MEMORY_BYTES_MAX


@pytest.mark.soak
def test_a_million_files_are_listed(tmp_path):
    store = file.FileStore((tmp_path / 'chunks').as_uri())
    store.initialise()
    for number in range(KEYS):
        path = tmp_path / 'chunks' / objects.key(name_of(number))
        path.write_bytes(b'')
    list_all(store, KEYS)


@pytest.mark.soak
def test_a_bucket_of_many_keys_is_listed(tmp_path):
    # Loaded by its name, as the tests beside it do.
    assert servers.HERE.is_dir()
    import gateway

    with gateway.Gateway(tmp_path, page_keys=1000) as found:
        site = gateway.S3Site(found, None)
        count = KEYS // 10
        begin = time.monotonic()
        for first in range(0, count, AT_ONCE):
            last = min(first + AT_ONCE, count)
            site.fill({name_of(n): b'x' for n in range(first, last)})
            print(f'{last} objects', flush=True)
        seconds = time.monotonic() - begin
        print(f'{count} objects put in {seconds:.0f} s')
        list_all(site.open(), count)
