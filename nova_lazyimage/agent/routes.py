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
"""What answers each path of the HTTP interface."""

import importlib.metadata
from typing import Any

from nova_lazyimage.agent import api
from nova_lazyimage.agent import arguments
from nova_lazyimage.agent import attachments
from nova_lazyimage.agent import errors
from nova_lazyimage.agent import freezes

API_VERSION = 1
CHUNK_BYTES_MAX = 4 << 20
_ID = r'([^/]+)'
_MIRROR = rf'/v1/mirrors/{_ID}/{_ID}'


class Routes:
    """The interface of one agent.

    :param agent: see service.Agent
    """

    def __init__(self, agent: Any) -> None:
        self._agent = agent

    def table(self) -> list[tuple[str, str, api.Route]]:
        """For the server."""
        ready = self._when_ready
        return [
            ('GET', '/v1/status', self.status),
            ('GET', '/metrics', self.metrics),
            ('GET', '/v1/mirrors', ready(self.list)),
            ('GET', _MIRROR, ready(self.show)),
            ('PUT', _MIRROR, ready(self.attach)),
            ('DELETE', _MIRROR, ready(self.release)),
            ('DELETE', f'/v1/mirrors/{_ID}', ready(self.release_all)),
            ('POST', f'{_MIRROR}/grow', ready(self.grow)),
            ('POST', f'{_MIRROR}/revert', ready(self.revert)),
            ('POST', f'{_MIRROR}/sync', ready(self.sync)),
            ('GET', f'{_MIRROR}/head', ready(self.head)),
            ('POST', f'{_MIRROR}/freeze', ready(self.freeze)),
            ('POST', f'{_MIRROR}/thaw', ready(self.thaw)),
            ('POST', f'{_MIRROR}/commits', ready(self.commit)),
            ('GET', f'{_MIRROR}/commits/{_ID}', ready(self.commit_state)),
            ('POST', f'{_MIRROR}/end-misses', ready(self.end_misses)),
            ('POST', f'{_MIRROR}/allow-misses', ready(self.allow_misses)),
            ('DELETE', f'/v1/images/{_ID}', ready(self.drop_image)),
            ('GET', f'/v1/chunks/{_ID}', ready(self.chunk)),
        ]

    def _when_ready(self, route: api.Route) -> api.Route:
        def answer(request: api.Request) -> api.Answer:
            if not self._agent.ready.is_set():
                raise errors.NotReady(
                    'the agent still exports its disks, or it is stopping; '
                    'try again'
                )
            return route(request)

        return answer

    def status(self, request: api.Request) -> api.Answer:
        """Answered from the start, whatever is away."""
        agent = self._agent
        mirrors = [
            agent.attachments.describe(live)
            for live in agent.attachments.table.all()
        ]
        figures = {
            name: value
            for name, value in agent.engine.statistics().items()
            if isinstance(value, (int, float, str))
        }
        return 200, {
            'version': version(),
            'api_version': API_VERSION,
            'host': agent.host,
            'pid': agent.pid,
            'ready': agent.ready.is_set(),
            'kept': agent.session.kept,
            'resumed': agent.session.resumed,
            'mount_root': str(agent.folders.mount_root),
            'state_directory': str(agent.folders.state),
            'repository': agent.repository_uuid(),
            'chunk_store': agent.chunk_store,
            'store_away': agent.network.fetcher.alarm.raised,
            'checks': agent.findings,
            'mirrors': len(mirrors),
            'broken': sum(m['state'] == 'broken' for m in mirrors),
            'local_bytes': sum(m['local_bytes'] for m in mirrors),
            'dirty_bytes': sum(m['dirty_bytes'] for m in mirrors),
            'cache': {
                'directory': str(agent.folders.cache),
                **{
                    name.removeprefix('cache_'): value
                    for name, value in figures.items()
                    if name.startswith('cache_')
                },
            },
            'engine': figures,
        }

    def metrics(self, request: api.Request) -> api.Answer:
        """Prometheus."""
        return 200, self._agent.network.metrics.render()

    def list(self, request: api.Request) -> api.Answer:
        """Every mirror."""
        found = self._agent.attachments
        return 200, {
            'mirrors': [found.describe(live) for live in found.table.all()]
        }

    def show(self, request: api.Request) -> api.Answer:
        """One mirror."""
        return 200, self._describe(request)

    def attach(self, request: api.Request) -> api.Answer:
        """Attach, or answer what is attached."""
        key = api.mirror_key(request)
        wanted = arguments.attach(
            request.body, request.peer.uid, request.peer.gid
        )
        # A tombstone of this server is older than this request.
        self._agent.network.releases.settle(key[0])
        live, new = self._agent.attachments.attach(key, wanted)
        return (201 if new else 200), self._agent.attachments.describe(live)

    def release(self, request: api.Request) -> api.Answer:
        """Give up a mirror."""
        key = api.mirror_key(request)
        self._agent.network.releases.release(
            key, keep_blob=request.flag('keep_blob')
        )
        return 200, {}

    def release_all(self, request: api.Request) -> api.Answer:
        """Give up a server's mirrors."""
        instance = arguments.match(arguments.UUID, 'instance', request.ids[0])
        self._agent.network.releases.release_instance(
            instance, keep_blob=request.flag('keep_blob')
        )
        return 200, {}

    def grow(self, request: api.Request) -> api.Answer:
        """Make a disk larger."""
        key = api.mirror_key(request)
        arguments.only(request.body, 'size_bytes')
        size_bytes = arguments.number(
            'size_bytes',
            request.body.get('size_bytes'),
            1,
            arguments.SIZE_BYTES_MAX,
        )
        live = self._agent.attachments.table.need(key)
        self._agent.attachments.grow(live, size_bytes)
        return 200, self._agent.attachments.describe(live)

    def revert(self, request: api.Request) -> api.Answer:
        """Back to a version of its blob."""
        key = api.mirror_key(request)
        arguments.only(request.body, 'version')
        version = arguments.number(
            'version', request.body.get('version'), 1, 1 << 31
        )
        live = self._agent.network.reverts.revert(key, version)
        return 200, self._agent.attachments.describe(live)

    def sync(self, request: api.Request) -> api.Answer:
        """Flush."""
        self._mirror(request).flush()
        return 200, {}

    def head(self, request: api.Request) -> api.Answer:
        """The first bytes."""
        key = api.mirror_key(request)
        text = request.query.get('bytes', '')
        length = int(text) if text.isascii() and text.isdigit() else -1
        arguments.number('bytes', length, 1, attachments.HEAD_BYTES_MAX)
        live = self._agent.attachments.table.need(key)
        return 200, self._agent.attachments.head(live, length)

    def freeze(self, request: api.Request) -> api.Answer:
        """Hold writes until a COMMIT names the token."""
        key = api.mirror_key(request)
        token, seconds = arguments.freeze(request.body)
        live = self._agent.attachments.table.need(key)
        state, new = freezes.freeze(live, token, seconds)
        return (201 if new else 200), state

    def thaw(self, request: api.Request) -> api.Answer:
        """Let the guest go on."""
        key = api.mirror_key(request)
        token = arguments.thaw(request.body)
        live = self._agent.attachments.table.need(key)
        return 200, freezes.thaw(live, token)

    def commit(self, request: api.Request) -> api.Answer:
        """Seal; the upload goes on after the answer."""
        key = api.mirror_key(request)
        wanted = arguments.commit(request.body)
        live = self._agent.attachments.table.need(key)
        state, new = self._agent.network.commits.start(live, **wanted)
        return (201 if new else 200), state

    def commit_state(self, request: api.Request) -> api.Answer:
        """How far it is."""
        key = api.mirror_key(request)
        commit_id = arguments.match(
            arguments.UUID, 'commit_id', request.ids[2]
        )
        live = self._agent.attachments.table.need(key)
        return 200, self._agent.network.commits.state(live, commit_id)

    def end_misses(self, request: api.Request) -> api.Answer:
        """Contract 40: a dying QEMU must not wait for the store."""
        self._mirror(request).end_misses()
        return 200, {}

    def allow_misses(self, request: api.Request) -> api.Answer:
        """Before QEMU starts."""
        self._mirror(request).allow_misses()
        return 200, {}

    def drop_image(self, request: api.Request) -> api.Answer:
        """A snapshot failed after its COMMIT."""
        image_id = arguments.match(arguments.UUID, 'image_id', request.ids[0])
        self._agent.network.releases.drop_image(image_id)
        return 200, {}

    def chunk(self, request: api.Request) -> api.Answer:
        """A chunk of the host's cache, for whoever repairs a store."""
        digest = arguments.match(arguments.DIGEST, 'digest', request.ids[0])
        text = request.query.get('bytes', '')
        size = int(text) if text.isascii() and text.isdigit() else -1
        arguments.number('bytes', size, 1, CHUNK_BYTES_MAX)
        found = self._agent.engine.cached(bytes.fromhex(digest), size)
        if found is None:
            raise errors.NoSuchChunk(
                f'this host\'s cache holds no chunk "{digest}" of {size} bytes'
            )
        return 200, found

    def _mirror(self, request: api.Request) -> Any:
        key = api.mirror_key(request)
        return self._agent.attachments.table.need(key).serving()

    def _describe(self, request: api.Request) -> dict[str, Any]:
        key = api.mirror_key(request)
        found = self._agent.attachments
        return found.describe_whole(found.table.need(key))


def version() -> str:
    """Of the distribution."""
    try:
        return importlib.metadata.version('lazyimage')
    except importlib.metadata.PackageNotFoundError:
        return '0'
