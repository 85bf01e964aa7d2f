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
"""Serves a FUSE mount in a process of its own, for the tests beside it.

A process that waits in its own mount can be neither ended nor helped, so the
tests never serve what they touch. ``passthrough MOUNT FILE THREADS`` serves
one file; ``engine STATE`` answers calls, one JSON object a line, on standard
input and output: ``{"on": "engine" | "mirror" | "sealed", "call": name,
"kwargs": {...}}``. Bytes travel as ``{"hex": "..."}``. Chunk objects are files
below ``STATE/objects``; while ``STATE/hold`` exists none is fetched.
"""

import ctypes
import json
import pathlib
import socket
import sys
import threading
import time

from nova_lazyimage import _mirror


def unpack(value):
    if isinstance(value, dict) and set(value) == {'hex'}:
        return bytes.fromhex(value['hex'])
    if isinstance(value, dict):
        return {key: unpack(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [unpack(inner) for inner in value]
    return value


def pack(value):
    if isinstance(value, bytes):
        return {'hex': value.hex()}
    if isinstance(value, dict):
        return {key: pack(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [pack(inner) for inner in value]
    return value


class Host:
    def __init__(self, state):
        self.state = state
        self.engine = None
        self.mirror = None
        self.sealed = None
        self.fetches = 0
        self.asked = []

    def open(self, **kwargs):
        self.engine = _mirror.Engine(**kwargs)
        for _ in range(4):
            threading.Thread(target=self._fetch, daemon=True).start()

    def attach(self, **kwargs):
        kwargs['leaves'] = [tuple(leaf) for leaf in kwargs['leaves']]
        self.mirror = self.engine.attach(**kwargs)

    def freeze(self):
        self.sealed = self.mirror.freeze()

    def send_descriptors(self, path):
        """Hand the session to whoever listens at ``path``."""
        with socket.socket(socket.AF_UNIX) as holder:
            holder.connect(path)
            descriptors = self.engine.session_descriptors()
            socket.send_fds(holder, [b'session'], descriptors)

    def hold_the_gil(self, seconds):
        """Nobody else runs Python here meanwhile; ``STATE/held`` says so."""
        # Unlike CDLL, PyDLL does not let go of it for the call.
        usleep = ctypes.PyDLL(None).usleep
        (self.state / 'held').touch()
        usleep(int(seconds * 1_000_000))

    def counts(self):
        return {'fetches': self.fetches, 'asked': len(self.asked)}

    def _fetch(self):
        while True:
            fetch = self.engine.next_fetch(False, 0.5)
            if fetch is None:
                continue
            name = fetch['digest'].hex()
            self.asked.append(name)
            # Handed out, not served: the fetcher is free for the next one.
            threading.Thread(
                target=self._serve, args=(fetch['digest'],), daemon=True
            ).start()

    def _serve(self, digest):
        while (self.state / 'hold').exists():
            time.sleep(0.005)
        try:
            data = (self.state / 'objects' / digest.hex()).read_bytes()
            self.engine.fetched(digest, data)
        except (OSError, ValueError) as exc:
            # Who takes a fetch must answer it, or its readers wait for ever.
            self.engine.fetch_failed(digest, 'transport', str(exc))
            raise
        self.fetches += 1

    def answer(self, line):
        call = unpack(json.loads(line))
        on = self if call['on'] == 'host' else getattr(self, call['on'])
        found = getattr(on, call['call'])
        return found(**call['kwargs']) if callable(found) else found


def serve(state):
    host = Host(state)
    for line in sys.stdin:
        try:
            answer = {'result': pack(host.answer(line))}
        except Exception as exc:
            answer = {
                'error': type(exc).__name__,
                'errno': getattr(exc, 'errno', None),
                'message': str(exc),
            }
        print(json.dumps(answer), flush=True)


if __name__ == '__main__':
    if sys.argv[1] == 'passthrough':
        _mirror.passthrough(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        serve(pathlib.Path(sys.argv[2]))
