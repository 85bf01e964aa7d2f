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
"""Chunk objects: what is packed comes back, and nothing else does."""

import random
import tracemalloc

import blake3
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from lazyblob import chunk
from lazyblob import digest
from lazyblob import exceptions

KEYS = digest.keys(digest.REPOSITORY_SCOPE)


def packed(content):
    data = chunk.pack(content, chunk.Kind.CHUNK)
    return data, digest.of(content, KEYS.chunk)


@given(st.binary(min_size=1, max_size=3000), st.integers(1, 40))
def test_what_is_packed_unpacks(seed, times):
    content = seed * times
    data, name = packed(content)
    assert chunk.plausible_length(data[:32], len(data))
    assert (
        chunk.unpack(data, name, KEYS.chunk, chunk.Kind.CHUNK, len(content))
        == content
    )


def test_what_does_not_compress_is_not_copied():
    content = random.Random(2).randbytes(1 << 16)
    data, name = packed(content)
    head, stored = data[:32], data[32:]
    found = chunk.unpack_parts(
        head, stored, name, KEYS.chunk, chunk.Kind.CHUNK, 1 << 16
    )
    assert found is stored
    assert found == content


@given(st.data())
def test_no_flipped_bit_goes_unnoticed(data):
    content = b'what the guest wrote' * 30 + random.Random(1).randbytes(200)
    raw, name = packed(content)
    bit = data.draw(st.integers(0, len(raw) * 8 - 1))
    damaged = bytearray(raw)
    damaged[bit // 8] ^= 1 << bit % 8
    with pytest.raises(exceptions.ChunkCorrupt):
        chunk.unpack(
            bytes(damaged), name, KEYS.chunk, chunk.Kind.CHUNK, 1 << 20
        )


def test_another_content_under_a_digest_is_corrupt():
    data, _name = packed(b'one' * 100)
    _data, other = packed(b'two' * 100)
    with pytest.raises(exceptions.ChunkCorrupt, match=other.hex()):
        chunk.unpack(data, other, KEYS.chunk, chunk.Kind.CHUNK, 4096)


def test_a_chunk_never_passes_for_a_node():
    content = b'n' * 100
    data = chunk.pack(content, chunk.Kind.NODE)
    name = digest.of(content, KEYS.chunk)
    with pytest.raises(exceptions.ChunkCorrupt):
        chunk.unpack(data, name, KEYS.node, chunk.Kind.CHUNK, 4096)
    assert digest.of(content, KEYS.node) != name


def test_projects_name_equal_content_differently():
    names = {
        digest.of(b'x', digest.keys(scope).chunk)
        for scope in ('repository', 'project:a', 'project:b')
    }
    assert len(names) == 3


def test_compression_is_used_only_when_it_saves_an_eighth():
    content = random.Random(1).randbytes(4096)
    assert chunk.pack(content, chunk.Kind.CHUNK)[5] == chunk.Codec.STORED
    some = random.Random(1).randbytes(4096 - 600) + bytes(600)
    assert chunk.pack(some, chunk.Kind.CHUNK)[5] == chunk.Codec.ZSTD
    few = random.Random(1).randbytes(4096 - 400) + bytes(400)
    assert chunk.pack(few, chunk.Kind.CHUNK)[5] == chunk.Codec.STORED


def bomb(size_bytes):
    """64 MiB of zeros, in an object that says ``size_bytes``, frame and all.

    Of a frame of known size the content size is the four bytes behind its
    magic, descriptor and window.
    """
    frame = bytearray(
        zstandard.ZstdCompressor(
            compression_params=zstandard.ZstdCompressionParameters(
                window_log=17, write_content_size=True
            )
        ).compress(bytes(64 << 20))
    )
    assert frame[6:10] == (64 << 20).to_bytes(4, 'little')
    frame[6:10] = size_bytes.to_bytes(4, 'little')
    head = bytearray(chunk.pack(b'x' * size_bytes, chunk.Kind.CHUNK)[:32])
    head[5] = chunk.Codec.ZSTD
    head[8:12] = size_bytes.to_bytes(4, 'little')
    head[12:16] = len(frame).to_bytes(4, 'little')
    hasher = blake3.blake3(bytes(head[:16])).update(bytes(frame))
    checksum = hasher.digest(length=8)
    return bytes(head[:16]) + checksum + bytes(8) + bytes(frame)


def test_a_bomb_is_stopped_at_the_size_that_it_told():
    size_bytes = 1 << 20
    data = bomb(size_bytes)
    tracemalloc.start()
    try:
        with pytest.raises(exceptions.ChunkCorrupt, match='decompress'):
            chunk.decode(data, chunk.Kind.CHUNK, size_bytes)
        assert tracemalloc.get_traced_memory()[1] < 4 * size_bytes
    finally:
        tracemalloc.stop()


def test_noise_is_known_by_a_sample_and_all_else_is_compressed():
    size_bytes = 512 << 10
    noise = random.Random(3).randbytes(size_bytes)
    for content, codec in (
        (noise, chunk.Codec.STORED),
        # Each page twice, as no sample of single pages would show.
        (
            b''.join(
                noise[at : at + 4096] * 2
                for at in range(0, size_bytes // 2, 4096)
            ),
            chunk.Codec.ZSTD,
        ),
        # An eighth and a half, wherever it begins.
        *(
            (
                noise[:at] + bytes(96 << 10) + noise[at + (96 << 10) :],
                chunk.Codec.ZSTD,
            )
            for at in range(0, 416 << 10, 13 << 10)
        ),
    ):
        # A sample is taken after noise only; then without one.
        chunk.pack(noise, chunk.Kind.CHUNK)
        for _ in range(2):
            data = chunk.pack(content, chunk.Kind.CHUNK)
            assert data[5] == codec
            assert chunk.decode(data, chunk.Kind.CHUNK, size_bytes) == content


@pytest.mark.parametrize('size_bytes', [1, 64, 4096, 8232, 1 << 19, 4 << 20])
def test_no_object_is_longer_than_it_may_be(size_bytes):
    content = random.Random(size_bytes).randbytes(size_bytes)
    frame = zstandard.ZstdCompressor(level=1).compress(content)
    size_bytes_max = chunk.object_bytes_max(size_bytes)
    assert chunk.HEADER_BYTES + len(frame) <= size_bytes_max
    assert len(chunk.pack(content, chunk.Kind.CHUNK)) <= size_bytes_max


@pytest.mark.parametrize('kind', [bytes, bytearray, memoryview])
def test_zeros_are_recognised(kind):
    assert chunk.is_zero(kind(bytes(4096)))
    assert not chunk.is_zero(kind(bytes(4095) + b'\1'))
    assert not chunk.is_zero(kind(b'\1' + bytes(4095)))


@pytest.mark.parametrize('size', [0, 1, 4095, 5000, 2048, 8 << 20])
def test_a_chunk_size_that_the_format_lacks_is_refused(size):
    with pytest.raises(exceptions.InvalidConfiguration, match=str(size)):
        chunk.check_size(size)
