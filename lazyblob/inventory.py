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
"""An inventory: millions of digests, each with its size and some marks.

A Python dictionary takes some 200 bytes for such an entry. Here it is 35
bytes in one of 65,536 buckets, which the digest's first two bytes choose: a
table of the rest, the stored size and the marks. Digests are evenly
distributed, so a bucket of a million has 15 entries, and one of a hundred
million 1,500, which a search passes in microseconds.

Memory: 65 bytes a digest for a million, with what buckets that grow leave to
the allocator; 40 bytes for many.

Threads: one.
"""

from collections.abc import Iterator

_PREFIX_BYTES = 2
_REST_BYTES = 30
_SIZE_BYTES = 4
_ENTRY_BYTES = _REST_BYTES + _SIZE_BYTES + 1
_SIZE_BYTES_MAX = (1 << 8 * _SIZE_BYTES) - 1


class Inventory:
    """Digests of 32 bytes, with sizes and marks (bits of one byte)."""

    def __init__(self) -> None:
        self._buckets: list[bytearray | None] = [None] * 65536
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, name: bytes, size_bytes: int = 0) -> bool:
        """Whether it is new; one that is there stays as it is.

        :param size_bytes: what is more than 4 GiB is kept as 4 GiB
        """
        bucket, at = self._find(name)
        if at >= 0:
            return False
        bucket += (
            name[_PREFIX_BYTES:]
            + min(size_bytes, _SIZE_BYTES_MAX).to_bytes(_SIZE_BYTES, 'little')
            + b'\0'
        )
        self._count += 1
        return True

    def size(self, name: bytes) -> int | None:
        """The size it was added with; None: it was not."""
        bucket, at = self._find(name)
        return None if at < 0 else _size(bucket, at)

    def marks(self, name: bytes) -> int:
        """What it was marked with; 0 of what is not there."""
        bucket, at = self._find(name)
        return bucket[at + _ENTRY_BYTES - 1] if at >= 0 else 0

    def mark(self, name: bytes, bits: int) -> int:
        """Add marks, and the digest if need be; the marks of before."""
        bucket, at = self._find(name)
        if at < 0:
            self.add(name)
            bucket, at = self._find(name)
        at += _ENTRY_BYTES - 1
        before = bucket[at]
        bucket[at] = before | bits
        return before

    def __iter__(self) -> Iterator[tuple[bytes, int, int]]:
        """Digest, size and marks of each."""
        for prefix, bucket in enumerate(self._buckets):
            head = prefix.to_bytes(_PREFIX_BYTES, 'big')
            for at in range(0, len(bucket or b''), _ENTRY_BYTES):
                assert bucket is not None  # noqa: S101 - of no length else
                end = at + _REST_BYTES
                yield (
                    head + bytes(bucket[at:end]),
                    _size(bucket, at),
                    bucket[at + _ENTRY_BYTES - 1],
                )

    def _find(self, name: bytes) -> tuple[bytearray, int]:
        """Its bucket, and where it is in it; -1: it is not."""
        prefix = int.from_bytes(name[:_PREFIX_BYTES], 'big')
        bucket = self._buckets[prefix]
        if bucket is None:
            bucket = self._buckets[prefix] = bytearray()
        rest = name[_PREFIX_BYTES:]
        at = bucket.find(rest)
        while at >= 0 and at % _ENTRY_BYTES:
            at = bucket.find(rest, at + 1)
        return bucket, at


def _size(bucket: bytearray, at: int) -> int:
    start = at + _REST_BYTES
    return int.from_bytes(bucket[start : start + _SIZE_BYTES], 'little')
