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
"""Chunk objects: what lies in a chunk store (FORMAT.rst, "Object").

An object is a header of 32 bytes and the stored bytes. The same frame holds
chunks, manifest nodes and descriptors. Everything is checked before it is
believed, in an order that gives a hostile store the least to work with:
lengths, then the checksum, then the decompressor with a bounded output, then
(:func:`unpack`) the digest.

Threads: no state is shared; each thread has its own zstd contexts.
"""

import enum
import functools
import struct
import threading

import blake3
import zstandard

from lazyblob import digest
from lazyblob import exceptions

MAGIC = b'LZIM'
VERSION = 1
HEADER = struct.Struct('<4sBBBBII8s8s')
HEADER_BYTES = 32
FLAG_PROJECT_SCOPE = 1
SIZE_BYTES_MIN = 4 << 10
SIZE_BYTES_MAX = 4 << 20
SIZE_BYTES_DEFAULT = 512 << 10

# Fast: one core compresses 400 MB/s; level 3 saves a tenth more at two
# thirds of the speed. Any level is the same format.
_ZSTD_LEVEL = 1
_CHECKED_BYTES = 16
# What noise is known by, in a chunk of 256 KiB or more: a part of it that
# compresses and is as long as the space between two samples is seen.
_SAMPLES = 8
_SAMPLE_BYTES = 8 << 10


class Kind(enum.IntEnum):
    CHUNK = 0
    NODE = 1
    DESCRIPTOR = 2


class Codec(enum.IntEnum):
    STORED = 0
    ZSTD = 1


class _Contexts(threading.local):
    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(
            level=_ZSTD_LEVEL, write_checksum=False, write_content_size=True
        )
        self.decompressor = zstandard.ZstdDecompressor()
        # Whether the last chunk did not compress: the next one is like it.
        self.meets_noise = False


_contexts = _Contexts()


@functools.lru_cache(maxsize=16)
def zeros(size_bytes: int) -> bytes:
    """One shared buffer for every hole of this size."""
    return bytes(size_bytes)


def object_bytes_max(content_bytes_max: int) -> int:
    """The longest object that a content of such a size can be in.

    A compressed one is never longer than zstd's bound for it.
    """
    overhead = content_bytes_max // 256 + 64
    return HEADER_BYTES + content_bytes_max + overhead


def is_zero(data: digest.Buffer) -> bool:
    # Comparing a memoryview goes byte by byte; bytes and bytearray memcmp.
    if isinstance(data, memoryview):
        if data[:64].tobytes().strip(b'\0'):
            return False
        data = data.tobytes()
    return data == zeros(len(data))


def check_size(size_bytes: int) -> int:
    """A chunk size that the format allows. :raises InvalidConfiguration:"""
    if not SIZE_BYTES_MIN <= size_bytes <= SIZE_BYTES_MAX or size_bytes & (
        size_bytes - 1
    ):
        raise exceptions.InvalidConfiguration(
            f'chunk size "{size_bytes}" is not a power of two from '
            f'{SIZE_BYTES_MIN} to {SIZE_BYTES_MAX} bytes'
        )
    return size_bytes


def _compressed(content: digest.Buffer) -> bytes | None:
    """The content compressed, if that saves an eighth.

    Noise is told by a sample, which costs an eighth of a compression; so it
    is taken only where there was noise before.
    """
    compress = _contexts.compressor.compress
    step = len(content) // _SAMPLES
    is_large = step >= 2 * _SAMPLE_BYTES
    if is_large and _contexts.meets_noise:
        view = memoryview(content)
        sample = b''.join(
            view[at : at + _SAMPLE_BYTES]
            for at in range(0, step * _SAMPLES, step)
        )
        # A sample of noise saves nothing at all.
        if len(compress(sample)) > len(sample) - len(sample) // 64:
            return None
    compressed = compress(content)
    saves = len(compressed) <= len(content) - len(content) // 8
    if is_large:
        _contexts.meets_noise = not saves
    return compressed if saves else None


def pack(
    content: digest.Buffer, kind: Kind, *, is_project: bool = False
) -> bytes:
    """The object that holds a content."""
    return b''.join(packed(content, kind, is_project=is_project))


def packed(
    content: digest.Buffer, kind: Kind, *, is_project: bool = False
) -> tuple[bytes, digest.Buffer]:
    """As :func:`pack`, in two parts: what does not compress is not copied."""
    codec = Codec.STORED
    stored: digest.Buffer = content
    compressed = _compressed(content)
    if compressed is not None:
        codec, stored = Codec.ZSTD, compressed
    head = HEADER.pack(
        MAGIC,
        VERSION,
        codec,
        kind,
        FLAG_PROJECT_SCOPE if is_project else 0,
        len(content),
        len(stored),
        b'',
        b'',
    )[:_CHECKED_BYTES]
    checksum = blake3.blake3(head).update(stored).digest(length=8)
    return head + checksum + bytes(8), stored


def plausible_length(head: bytes, size_bytes: int) -> bool:
    """Whether an object of this size can open with these bytes.

    What a store can cheaply tell of an object that it finds: a file that a
    loss of power cut short does not pass.
    """
    if len(head) < HEADER_BYTES:
        return False
    magic, *_, stored_bytes, _checksum, _reserved = HEADER.unpack_from(head)
    return bool(magic == MAGIC and size_bytes == HEADER_BYTES + stored_bytes)


def decode(data: bytes, kind: Kind, size_bytes_max: int) -> bytes:
    """The content of an object; its digest is not checked here.

    :raises ChunkCorrupt: and which rule of FORMAT.rst it breaks
    """
    return _decode(
        data[:HEADER_BYTES],
        memoryview(data)[HEADER_BYTES:],
        kind,
        size_bytes_max,
    )


def _decode(
    head: bytes, stored: digest.Buffer, kind: Kind, size_bytes_max: int
) -> bytes:
    """:param stored: not copied if it is ``bytes``"""
    if len(head) < HEADER_BYTES:
        raise exceptions.ChunkCorrupt('object is shorter than its header')
    (
        magic,
        version,
        codec,
        found_kind,
        flags,
        raw_bytes,
        stored_bytes,
        checksum,
        reserved,
    ) = HEADER.unpack(head)
    for holds, fault in (
        (magic == MAGIC, 'has no magic'),
        (version == VERSION, f'has version {version}, not {VERSION}'),
        (codec in tuple(Codec), f'has unknown codec {codec}'),
        (found_kind == kind, f'is of kind {found_kind}, not {int(kind)}'),
        (flags & ~FLAG_PROJECT_SCOPE == 0, f'has unknown flags {flags}'),
        (reserved == bytes(8), 'has reserved bits set'),
        (0 < raw_bytes <= size_bytes_max, f'holds {raw_bytes} bytes'),
        (
            stored_bytes == len(stored),
            f'stores {len(stored)} bytes, not {stored_bytes}',
        ),
    ):
        if not holds:
            raise exceptions.ChunkCorrupt(f'object {fault}')
    hasher = blake3.blake3(head[:_CHECKED_BYTES]).update(stored)
    if hasher.digest(length=8) != checksum:
        raise exceptions.ChunkCorrupt('object does not match its checksum')
    if codec == Codec.STORED:
        if raw_bytes != stored_bytes:
            raise exceptions.ChunkCorrupt('object has two different lengths')
        return bytes(stored)
    return _decompress(stored, raw_bytes)


def _decompress(stored: digest.Buffer, raw_bytes: int) -> bytes:
    """Exactly ``raw_bytes``; the frame says so before any is allocated."""
    try:
        if zstandard.frame_content_size(stored) != raw_bytes:
            raise exceptions.ChunkCorrupt(
                'object is compressed to another length than it says'
            )
        return _contexts.decompressor.decompress(
            stored, max_output_size=raw_bytes, allow_extra_data=False
        )
    except zstandard.ZstdError as exc:
        raise exceptions.ChunkCorrupt('object does not decompress') from exc


def unpack(
    data: bytes, name: bytes, key: bytes, kind: Kind, size_bytes_max: int
) -> bytes:
    """The content of the object that is found under a digest.

    :raises ChunkCorrupt: it is not what the digest names
    """
    return unpack_parts(
        data[:HEADER_BYTES],
        memoryview(data)[HEADER_BYTES:],
        name,
        key,
        kind,
        size_bytes_max,
    )


def unpack_parts(
    head: bytes,
    stored: digest.Buffer,
    name: bytes,
    key: bytes,
    kind: Kind,
    size_bytes_max: int,
) -> bytes:
    """As :func:`unpack`, of an object in the parts of :func:`packed`.

    :param stored: given back as it is, if it is ``bytes`` and not compressed
    """
    try:
        content = _decode(head, stored, kind, size_bytes_max)
    except exceptions.ChunkCorrupt as exc:
        raise exceptions.ChunkCorrupt(f'"{name.hex()}": {exc}') from exc
    if digest.of(content, key) != name:
        raise exceptions.ChunkCorrupt(
            f'"{name.hex()}": object holds other content than its digest names'
        )
    return content
