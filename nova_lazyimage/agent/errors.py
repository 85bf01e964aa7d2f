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
"""Errors of the agent's own, and what HTTP says of every error.

The one place where a failure becomes a status: whatever the repository, the
engine or the system raised, the client reads its name and the remedy.
"""

import errno

from lazyblob import exceptions
from nova_lazyimage.agent import state

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class AgentError(Exception):
    """The agent refuses; its class is the error's name."""

    status = 500


class BadRequest(AgentError):
    """An argument cannot be right."""

    status = 400


class PeerForbidden(AgentError):
    """This process may not talk to the agent."""

    status = 403


class NoSuchMirror(AgentError):
    """Nothing is attached there."""

    status = 404


class NoSuchCommit(AgentError):
    """That mirror never had such a COMMIT, or it was forgotten."""

    status = 404


class NoSuchChunk(AgentError):
    """The host's cache does not have it."""

    status = 404


class Conflict(AgentError):
    """What is there already, or what is in use, stands against it."""

    status = 409


class FreezeExpired(AgentError):
    """The freeze that is to be sealed holds no more."""

    status = 409


class NotReady(AgentError):
    """The agent still exports its mirrors, or it is stopping."""

    status = 503


class NoSpace(AgentError):
    """No room on this host."""

    status = 507


class Cancelled(AgentError):
    """The mirror was released during its COMMIT."""

    status = 409


class Interrupted(AgentError):
    """The agent died or stopped during a COMMIT: it may be repeated."""

    status = 503


# The first class that fits names the status.
_STATUS: tuple[tuple[type[Exception], int], ...] = (
    (exceptions.NotFound, 404),
    (exceptions.Forbidden, 403),
    (exceptions.BadLocation, 400),
    (exceptions.InvalidConfiguration, 400),
    (exceptions.Conflict, 409),
    (exceptions.CatalogUnavailable, 503),
    (exceptions.StoreFull, 507),
    (exceptions.TemporaryStoreError, 503),
    (exceptions.ChunkCorrupt, 500),
    (exceptions.StoreError, 503),
    (state.Locked, 409),
)


def describe(exc: BaseException) -> tuple[int, str, str]:
    """Status, name and message of an error."""
    if isinstance(exc, AgentError):
        name = {
            'NoSuchMirror': 'NotFound',
            'NoSuchCommit': 'NotFound',
            'NoSuchChunk': 'NotFound',
            'PeerForbidden': 'Forbidden',
        }.get(type(exc).__name__, type(exc).__name__)
        return exc.status, name, str(exc)
    for cls, status in _STATUS:
        if isinstance(exc, cls):
            return status, type(exc).__name__, str(exc)
    if isinstance(exc, OSError) and exc.errno in NO_SPACE:
        return 507, 'NoSpace', f'no room is left on this host: {exc}'
    return 500, 'InternalError', f'{type(exc).__name__}: {exc}'
