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
"""Who is at the other end of the agent's socket.

The socket's mode keeps strangers out; this is the second lock: the kernel
says who connected (SO_PEERCRED and SO_PEERGROUPS, as they were at connect),
and only root, the agent's own user and members of the socket's group are
answered.
"""

import dataclasses
import os
import pwd
import socket
import struct

_CREDENTIALS = struct.Struct('iII')
_GID = struct.Struct('I')
SO_PEERGROUPS = 59
GROUPS_BYTES_MAX = 1024  # as much as getsockopt() here takes


@dataclasses.dataclass(frozen=True)
class Peer:
    """A process that connected."""

    pid: int
    uid: int
    gid: int
    groups: frozenset[int]

    @classmethod
    def of(cls, connection: socket.socket) -> 'Peer':
        """The peer of a connected unix socket."""
        pid, uid, gid = _CREDENTIALS.unpack(
            connection.getsockopt(
                socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size
            )
        )
        return cls(pid, uid, gid, _groups(connection, uid, gid))

    def may_ask(self, group_gid: int | None) -> bool:
        """Whether the agent answers it."""
        return self.uid in (0, os.geteuid()) or (
            group_gid is not None
            and (self.gid == group_gid or group_gid in self.groups)
        )


def _groups(connection: socket.socket, uid: int, gid: int) -> frozenset[int]:
    """The peer's further groups; of very many, what its account says."""
    try:
        packed = connection.getsockopt(
            socket.SOL_SOCKET, SO_PEERGROUPS, GROUPS_BYTES_MAX
        )
    except OSError:
        try:
            name = pwd.getpwuid(uid).pw_name
        except KeyError:
            return frozenset()
        return frozenset(os.getgrouplist(name, gid))
    return frozenset(group for (group,) in _GID.iter_unpack(packed))
