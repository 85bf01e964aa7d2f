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
"""A client of the NBD protocol, for what ``qemu-nbd`` serves.

Only what moving a whole disk needs: the fixed newstyle handshake, reads and
writes, several of them under way on one connection, a flush. The server is a
child of ours on a socket in a folder of ours; still nothing that it answers
is taken for longer than it was asked for.

Threads: one connection is one thread's.
"""

import collections
import contextlib
import os
import socket
import struct
from collections.abc import Iterable, Iterator

from lazyblob import exceptions

PIECE_BYTES = 1 << 20
UNDER_WAY_MAX = 8

_GREETING = b'NBDMAGICIHAVEOPT'
_FLAGS = 3  # fixed newstyle, no padding
_OPTION_REPLY = struct.Struct('>QIII')
_OPTION_REPLY_MAGIC = 0x3E889045565A9
_GO = 7
_ACK, _INFO = 1, 3
_EXPORT = struct.Struct('>HQH')
_REQUEST = struct.Struct('>IHHQQI')
_REPLY = struct.Struct('>IIQ')
_REQUEST_MAGIC, _REPLY_MAGIC = 0x25609513, 0x67446698
_READ, _WRITE, _DISCONNECT, _FLUSH = range(4)
_REPLY_BYTES_MAX = 1 << 16


class ServerFailed(exceptions.StoreError):
    """It reported an error, answered nonsense, or went away."""


class Disk:
    """One connection to a served disk.

    :raises ServerFailed: by every operation
    """

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._handle = 0
        try:
            self._socket.connect(path)
            self._input = self._socket.makefile('rb')
            self.size_bytes = self._shake_hands()
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        with contextlib.suppress(ServerFailed):
            self._send(_DISCONNECT, 0, 0)
        self._input.close()
        self._socket.close()

    def read(self, ranges: Iterable[tuple[int, int]]) -> Iterator[bytes]:
        """The bytes of ranges, in their order; the next ones are under way.

        :param ranges: offset and length, of a few MiB at most
        """
        wanted = iter(ranges)
        lengths: dict[int, int] = {}
        order: collections.deque[int] = collections.deque()
        answers: dict[int, bytes] = {}
        while True:
            while len(order) < UNDER_WAY_MAX:
                found = next(wanted, None)
                if found is None:
                    break
                handle = self._send(_READ, *found)
                lengths[handle] = found[1]
                order.append(handle)
            if not order:
                return
            while order[0] not in answers:
                handle = self._answer()
                if handle not in lengths:
                    raise _failed('answered what nobody asked')
                answers[handle] = self._receive(lengths.pop(handle))
            yield answers.pop(order.popleft())

    def write(self, pieces: Iterable[tuple[int, bytes]]) -> None:
        """Write pieces, of a few MiB at most, at their offsets."""
        under_way = 0
        for offset, data in pieces:
            if under_way == UNDER_WAY_MAX:
                self._answer()
                under_way -= 1
            self._send(_WRITE, offset, len(data), data)
            under_way += 1
        for _ in range(under_way):
            self._answer()

    def flush(self) -> None:
        """What was written survives loss of power."""
        self._send(_FLUSH, 0, 0)
        self._answer()

    def _shake_hands(self) -> int:
        if self._receive(len(_GREETING)) != _GREETING:
            raise _failed('is no NBD server')
        self._receive(2)  # its flags
        name = b''
        self._write(
            struct.pack('>I', _FLAGS),
            b'IHAVEOPT',
            struct.pack('>IIIH', _GO, 6 + len(name), len(name), 0),
        )
        size_bytes = -1
        while True:
            magic, _option, kind, length = _OPTION_REPLY.unpack(
                self._receive(_OPTION_REPLY.size)
            )
            if magic != _OPTION_REPLY_MAGIC or length > _REPLY_BYTES_MAX:
                raise _failed('answers no handshake')
            data = self._receive(length)
            if kind == _ACK and size_bytes >= 0:
                return size_bytes
            if kind == _INFO and data[:2] == b'\0\0':
                _info, size_bytes, _flags = _EXPORT.unpack(data)
            elif kind != _INFO:
                raise _failed(f'refused ({data.decode(errors="replace")})')

    def _send(
        self, kind: int, offset: int, length: int, data: bytes = b''
    ) -> int:
        self._handle += 1
        self._write(
            _REQUEST.pack(
                _REQUEST_MAGIC, 0, kind, self._handle, offset, length
            ),
            data,
        )
        return self._handle

    def _answer(self) -> int:
        magic, error, handle = _REPLY.unpack(self._receive(_REPLY.size))
        if magic != _REPLY_MAGIC:
            raise _failed('answers no request')
        if error:
            # Its numbers are Linux' own.
            raise _failed(f'reports: {os.strerror(error)}')
        return int(handle)

    def _write(self, *parts: bytes) -> None:
        try:
            for part in filter(None, parts):
                self._socket.sendall(part)
        except OSError as exc:
            raise _failed('went away') from exc

    def _receive(self, length: int) -> bytes:
        try:
            data = self._input.read(length)
        except OSError as exc:
            raise _failed('went away') from exc
        if len(data) != length:
            raise _failed('went away')
        return data


def _failed(how: str) -> ServerFailed:
    return ServerFailed(f'qemu-nbd {how}')
