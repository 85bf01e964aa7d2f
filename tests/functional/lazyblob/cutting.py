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
"""A thing between a client and a database server that cuts connections."""

import contextlib
import pathlib
import select
import socket
import threading

BUFFER_BYTES = 1 << 20


class Cutter:
    """Passes bytes on, until it is told to cut.

    A client sends a statement, or BEGIN or COMMIT, and waits for its answer:
    each is a burst. What is cut off is either the burst, which the server
    then never sees, or its answer: the server has done it, a commit too.

    :param target: the server's socket; ours has its name, in ``folder``
    """

    def __init__(self, folder: pathlib.Path, target: pathlib.Path) -> None:
        self.socket = folder / target.name
        self.has_cut = False
        self._target = target
        self._lock = threading.Lock()
        self._left = 0
        self._is_answer = False
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.socket))
        self._listener.listen(64)
        threading.Thread(
            target=self._accept, name='cutter', daemon=True
        ).start()

    def arm(self, burst: int, *, is_answer: bool) -> None:
        """Cut once, at a burst from now; 1 is the next."""
        with self._lock:
            self._left, self._is_answer = burst, is_answer
            self.has_cut = False

    def disarm(self) -> None:
        with self._lock:
            self._left = 0

    def close(self) -> None:
        # Closing alone does not wake who accepts.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(
                    target=self._pass, args=(client,), daemon=True
                ).start()

    def _pass(self, client: socket.socket) -> None:
        server = socket.socket(socket.AF_UNIX)
        with client, server, contextlib.suppress(OSError):
            server.connect(str(self._target))
            while True:
                ready, _, _ = select.select([client, server], [], [])
                if server in ready:
                    data = server.recv(BUFFER_BYTES)
                    if not data:
                        return
                    client.sendall(data)
                if client in ready:
                    data = client.recv(BUFFER_BYTES)
                    if not data or not self._send(server, data):
                        return

    def _send(self, server: socket.socket, data: bytes) -> bool:
        with self._lock:
            self._left -= 1
            is_cut = self._left == 0
            self.has_cut = self.has_cut or is_cut
        if not is_cut or self._is_answer:
            server.sendall(data)
        if is_cut and self._is_answer:
            server.recv(BUFFER_BYTES)
        return not is_cut
