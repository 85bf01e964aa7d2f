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
"""The bytes of one upload on their way."""

import hashlib
import io
import threading

import pytest
from glance_store import exceptions

from glance_store_blob import upload

READ_BYTES = 1000


@pytest.fixture
def hashing():
    hashing = upload.Hashing(['md5', 'sha512'])
    yield hashing
    hashing.close()


def make(hashing, image_file, size_bytes=0, verifier=None):
    return upload.Upload(image_file, size_bytes, hashing, verifier, READ_BYTES)


def test_bytes_pass_unchanged_and_are_hashed(hashing, rng):
    data = rng.randbytes(123_456)
    passing = make(hashing, io.BytesIO(data), len(data))
    assert b''.join(passing) == data
    assert passing.received_bytes == len(data)
    assert passing.failure is None
    assert hashing.hexdigests() == [
        hashlib.md5(data).hexdigest(),
        hashlib.sha512(data).hexdigest(),
    ]


def test_an_iterable_of_bytes_of_any_length_will_do(hashing):
    parts = [b'a', b'bc' * 5000, b'd']
    assert list(make(hashing, iter(parts))) == parts
    assert hashing.hexdigests()[0] == hashlib.md5(b''.join(parts)).hexdigest()


def test_nothing_at_all_has_digests_too(hashing):
    assert list(make(hashing, io.BytesIO())) == []
    assert hashing.hexdigests()[0] == hashlib.md5(b'').hexdigest()


def test_the_verifier_gets_every_byte(hashing):
    class Verifier:
        seen = b''

        def update(self, data):
            self.seen += data

    verifier = Verifier()
    data = b'0123456789' * 1000
    list(make(hashing, io.BytesIO(data), verifier=verifier))
    assert verifier.seen == data


@pytest.mark.parametrize('announced', [1, 4999, 5001, 10**12])
def test_a_size_that_lies_is_refused(hashing, announced):
    passing = make(hashing, io.BytesIO(bytes(5000)), announced)
    with pytest.raises(exceptions.Invalid) as refusal:
        list(passing)
    assert passing.failure is refusal.value
    assert str(announced) in str(refusal.value)


def test_a_size_that_is_exceeded_is_refused_without_reading_on(hashing):
    file = io.BytesIO(bytes(100 * READ_BYTES))
    with pytest.raises(exceptions.Invalid):
        list(make(hashing, file, READ_BYTES))
    assert file.tell() == 2 * READ_BYTES


@pytest.mark.parametrize('error', [OSError(28, 'full'), KeyboardInterrupt()])
def test_what_the_reader_raises_is_kept(hashing, error):
    def reader():
        yield b'some'
        raise error

    passing = make(hashing, reader())
    with pytest.raises(type(error)) as raised:
        list(passing)
    assert raised.value is error
    assert passing.failure is error


def test_an_iteration_that_is_given_up_is_no_failure_of_the_reader(hashing):
    passing = make(hashing, io.BytesIO(bytes(5000)))
    iterator = iter(passing)
    next(iterator)
    iterator.close()
    assert passing.failure is None


def test_hashes_run_beside_but_not_far_behind():
    go = threading.Event()

    class Slow:
        def __init__(self):
            self.count = 0

        def update(self, data):
            go.wait(10)
            self.count += 1

    hashing = upload.Hashing(['md5'])
    slow = hashing._hashers[0] = Slow()
    for _ in range(upload.WAITING_BUFFERS_MAX):
        hashing.update(b'x')  # does not wait
    assert slow.count == 0
    one_more = threading.Thread(target=hashing.update, args=(b'x',))
    one_more.start()
    one_more.join(0.1)
    assert one_more.is_alive()
    go.set()
    one_more.join(10)
    hashing.close()
