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
"""What asks the agent: plain blocking calls with a timeout.

Used inside nova-compute, so nothing but the standard library is imported
(contract 36): no thread, no event loop, one connection a call. It works the
same under native threads and in a process patched by eventlet.

Every call may be repeated; none is repeated silently.
"""

import contextlib
import http.client
import json
import os
import socket
import time
import urllib.parse
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

# A unix socket's address holds 108 bytes; a longer path is reached through
# the descriptor of its directory.
ADDRESS_BYTES_MAX = 100
POLL_SECONDS = 0.2


class AgentError(Exception):
    """The agent did not do what it was asked.

    :ivar code: the name of the error, as the agent said it
    """

    def __init__(self, message: str, code: str = '') -> None:
        super().__init__(message)
        self.code = code or type(self).__name__


class AgentUnavailable(AgentError):
    """No agent answers at the socket, or not in time."""


class BadRequest(AgentError):
    """The agent refuses the arguments."""


class Forbidden(AgentError):
    """This process may not talk to the agent, or not about this blob."""


class NotFound(AgentError):
    """No such mirror, commit, blob or version."""


class Conflict(AgentError):
    """What is there already, or what is in use, stands against it."""


class RepositoryUnavailable(AgentError):
    """The agent is up; the catalog or the chunk store is not: try again."""


class NoSpace(AgentError):
    """No room on this host or in the store."""


class CommitFailed(AgentError):
    """The COMMIT ended without a version; what it held is dirty again."""


_BY_STATUS: dict[int, type[AgentError]] = {
    400: BadRequest,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    503: RepositoryUnavailable,
    507: NoSpace,
}


@contextlib.contextmanager
def address_of(path: str) -> Iterator[str]:
    """An address for bind() or connect() that is short enough."""
    if len(os.fsencode(path)) <= ADDRESS_BYTES_MAX:
        yield path
        return
    folder, name = os.path.split(path)
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f'/proc/self/fd/{descriptor}/{name}'
    finally:
        os.close(descriptor)


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_seconds: float) -> None:
        super().__init__('localhost', timeout=timeout_seconds)
        self._path = path
        self._timeout_seconds = timeout_seconds

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self._timeout_seconds)
        with address_of(self._path) as address:
            self.sock.connect(address)


class AgentClient:
    """The agent's HTTP interface, version 1 (reference/agent-api).

    :param socket_path: where the agent listens
    :param timeout_seconds: for every step of a call, unless it says otherwise
    :raises AgentUnavailable: by every call
    """

    def __init__(
        self, socket_path: str, timeout_seconds: float = 60.0
    ) -> None:
        self.socket_path = socket_path
        self.timeout_seconds = timeout_seconds

    def status(self) -> dict[str, Any]:
        """Version, host, ready, mount_root, repository uuid, totals."""
        return self._json('GET', '/v1/status')

    def metrics(self) -> str:
        """What Prometheus would read."""
        return self._bytes('GET', '/metrics').decode()

    def mirrors(self) -> list[dict[str, Any]]:
        """Every mirror of the host."""
        return self._json('GET', '/v1/mirrors')['mirrors']

    def mirror(self, instance: str, disk: str) -> dict[str, Any]:
        """One mirror. :raises NotFound:"""
        return self._json('GET', self._path(instance, disk))

    def attach(
        self,
        instance: str,
        disk: str,
        *,
        clone_blob: str | None = None,
        clone_version: int | None = None,
        blob: str | None = None,
        project_id: str = '',
        size_bytes: int | None = None,
        timeout_seconds: float | None = None,
    ) -> dict[str, Any]:
        """Attach a clone of a blob, or a blob itself; repeating is harmless.

        :param clone_blob: the blob of the image; a clone of it is made
        :param clone_version: None: its newest
        :param blob: write to this blob instead
        :param size_bytes: grow the disk to it
        :returns: the mirror, ``path`` among it
        :raises NotFound: no such blob or version
        :raises Conflict: another blob is attached there, or it would shrink
        :raises RepositoryUnavailable: catalog or store away
        """
        body: dict[str, Any] = {'project_id': project_id}
        if clone_blob is not None:
            body['clone'] = {'blob': clone_blob, 'version': clone_version}
        if blob is not None:
            body['blob'] = blob
        if size_bytes is not None:
            body['size_bytes'] = size_bytes
        return self._json(
            'PUT', self._path(instance, disk), body, timeout_seconds
        )

    def grow(
        self, instance: str, disk: str, size_bytes: int
    ) -> dict[str, Any]:
        """:raises Conflict: it would shrink"""
        return self._json(
            'POST',
            self._path(instance, disk, 'grow'),
            {'size_bytes': size_bytes},
        )

    def revert(self, instance: str, disk: str, version: int) -> dict[str, Any]:
        """Drop what was written since; the disk is that version again.

        :raises NotFound: its blob has no such version
        :raises Conflict: the disk is open, or a COMMIT of it is under way
        """
        return self._json(
            'POST', self._path(instance, disk, 'revert'), {'version': version}
        )

    def sync(self, instance: str, disk: str) -> None:
        """Flush: what the guest was acknowledged is durable afterwards."""
        self._json('POST', self._path(instance, disk, 'sync'), {})

    def head(self, instance: str, disk: str, length_bytes: int) -> bytes:
        """The first bytes of the disk, for the inspection of its format."""
        query = f'?bytes={length_bytes:d}'
        return self._bytes('GET', self._path(instance, disk, 'head') + query)

    def freeze(
        self, instance: str, disk: str, token: str, seconds: float = 5
    ) -> dict[str, Any]:
        """Hold the guest's writes until a COMMIT names the token.

        Freeze all disks of a group, then commit each of them.

        :param token: a UUID; repeating it answers the same freeze
        :param seconds: then it is thawed, whatever happens; at most 20
        :raises Conflict: a COMMIT or another freeze is under way; code
            ``FreezeExpired``: this token's freeze has ended
        """
        return self._json(
            'POST',
            self._path(instance, disk, 'freeze'),
            {'token': token, 'seconds': seconds},
        )

    def thaw(self, instance: str, disk: str, token: str) -> dict[str, Any]:
        """Let the guest go on; a freeze that has ended is fine."""
        return self._json(
            'POST', self._path(instance, disk, 'thaw'), {'token': token}
        )

    def commit(
        self,
        instance: str,
        disk: str,
        *,
        commit_id: str,
        image_id: str | None = None,
        project_id: str = '',
        name: str = '',
        token: str | None = None,
    ) -> dict[str, Any]:
        """Seal the disk and start its COMMIT; returns once it is SEALED.

        Quiesce the guest before, thaw it after. Repeating it with the same
        ``commit_id`` answers the same COMMIT.

        :param image_id: publish it as this image blob, too
        :param token: seal what was frozen under it; None: freeze now
        :raises Conflict: another COMMIT of this disk is under way; code
            ``FreezeExpired``: that freeze holds no more
        """
        body = {
            'commit_id': commit_id,
            'image_id': image_id,
            'project_id': project_id,
            'name': name,
        }
        if token is not None:
            body['token'] = token
        return self._json('POST', self._path(instance, disk, 'commits'), body)

    def commit_state(
        self, instance: str, disk: str, commit_id: str
    ) -> dict[str, Any]:
        """How far a COMMIT is. :raises NotFound:"""
        return self._json(
            'GET', self._path(instance, disk, 'commits', commit_id)
        )

    def wait_for_commit(
        self,
        instance: str,
        disk: str,
        commit_id: str,
        timeout_seconds: float,
        progress: Callable[[dict[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        """Wait until it is published; the answer has its ``location``.

        An agent that is away for a moment is asked again until time is up.

        :raises CommitFailed: it failed, or is not done in time
        :raises NotFound: the agent knows nothing of it
        """
        until = time.monotonic() + timeout_seconds
        while True:
            unavailable = None
            try:
                state = self.commit_state(instance, disk, commit_id)
            except AgentUnavailable as exc:
                unavailable = exc
            else:
                if progress is not None:
                    progress(state)
                if state['state'] == 'published':
                    return state
                if state['state'] == 'failed':
                    error = state.get('error') or {}
                    raise CommitFailed(
                        error.get('message', 'the commit failed'),
                        error.get('code', ''),
                    )
            if time.monotonic() >= until:
                if unavailable is not None:
                    raise unavailable
                raise CommitFailed(
                    f'commit "{commit_id}" was not published within '
                    f'{timeout_seconds:g} s',
                    'Timeout',
                )
            time.sleep(POLL_SECONDS)

    def end_misses(self, instance: str, disk: str) -> None:
        """Parked and new misses end with EIO (before QEMU is killed)."""
        self._json('POST', self._path(instance, disk, 'end-misses'), {})

    def allow_misses(self, instance: str, disk: str) -> None:
        """Misses are fetched again (before QEMU starts)."""
        self._json('POST', self._path(instance, disk, 'allow-misses'), {})

    def release(
        self, instance: str, disk: str, *, keep_blob: bool = False
    ) -> None:
        """Give up a mirror and its blob; repeating is harmless."""
        query = '?keep_blob=1' if keep_blob else ''
        self._json('DELETE', self._path(instance, disk) + query)

    def release_all(self, instance: str, *, keep_blob: bool = False) -> None:
        """Every disk of a server; repeating is harmless."""
        query = '?keep_blob=1' if keep_blob else ''
        self._json('DELETE', self._path(instance) + query)

    def drop_image(self, blob_id: str) -> None:
        """Drop an image blob of a snapshot that failed later on.

        :raises Conflict: Glance has read it already: delete the image
        """
        quoted = urllib.parse.quote(blob_id, safe='')
        self._json('DELETE', f'/v1/images/{quoted}')

    def chunk(self, digest: str, chunk_size_bytes: int) -> bytes:
        """A chunk of the host's cache; check it by its digest.

        :param digest: hexadecimal
        :raises NotFound: it is not there
        """
        quoted = urllib.parse.quote(digest, safe='')
        query = f'?bytes={chunk_size_bytes:d}'
        return self._bytes('GET', f'/v1/chunks/{quoted}{query}')

    @staticmethod
    def _path(*parts: str) -> str:
        quoted = [urllib.parse.quote(part, safe='') for part in parts]
        return '/'.join(['/v1/mirrors', *quoted])

    def _json(
        self,
        verb: str,
        path: str,
        body: dict[str, Any] | None = None,
        timeout_seconds: float | None = None,
    ) -> dict[str, Any]:
        answer = self._bytes(verb, path, body, timeout_seconds)
        try:
            return json.loads(answer) if answer else {}
        except ValueError as exc:
            raise AgentUnavailable(
                f'what answers at "{self.socket_path}" is no agent'
            ) from exc

    def _bytes(
        self,
        verb: str,
        path: str,
        body: dict[str, Any] | None = None,
        timeout_seconds: float | None = None,
    ) -> bytes:
        connection = _Connection(
            self.socket_path, timeout_seconds or self.timeout_seconds
        )
        data = None if body is None else json.dumps(body).encode()
        headers = {'Connection': 'close'}
        if data is not None:
            headers['Content-Type'] = 'application/json'
        try:
            connection.request(verb, path, data, headers)
            response = connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as exc:
            raise AgentUnavailable(
                f'the agent at "{self.socket_path}" does not answer: '
                f'{exc or type(exc).__name__}; start lazyimage-agent, or '
                'correct [lazyimage] agent_socket'
            ) from exc
        finally:
            connection.close()
        if response.status >= 400:
            raise self._error(response.status, answer)
        return answer

    @staticmethod
    def _error(status: int, answer: bytes) -> AgentError:
        code, message = '', f'the agent answered {status}'
        with contextlib.suppress(ValueError, KeyError, TypeError):
            error = json.loads(answer)['error']
            code, message = str(error['code']), str(error['message'])
        return _BY_STATUS.get(status, AgentError)(message, code)
