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
"""What the engine tells the host: owners to journal, alarms, log lines.

A slow request is one line of ``name=value`` pairs, in this order: instance,
disk, operation, offset, bytes, chunk, source, digest (of a chunk of the base
version), errno (it failed), not_told (slow requests before it that were too
many to log), seconds.
"""

import threading
from typing import Any

from oslo_log import log as logging

from nova_lazyimage.agent import attachments

LOG = logging.getLogger(__name__)
ENGINE_LOG = logging.getLogger('nova_lazyimage.mirror')

WAIT_SECONDS = 1.0
_LEVELS = {
    'error': logging.ERROR,
    'warn': logging.WARNING,
    'warning': logging.WARNING,
    'info': logging.INFO,
}


class Events:
    """One thread that drains the engine's queue."""

    def __init__(self, engine: Any, attached: attachments.Attachments) -> None:
        #: The agent is its own user: what is journalled from now on is, too.
        self.settled = threading.Event()
        self._engine = engine
        self._attached = attached
        self._stopping = threading.Event()
        self.alarms = 0
        self._thread = threading.Thread(
            target=self._run, name='events', daemon=True
        )

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def stop(self) -> None:
        """Listen no more, once the queue was drained."""
        self._stopping.set()
        self.settled.set()
        self._engine.close_events()
        self._thread.join(2 * WAIT_SECONDS)
        while self._thread.is_alive() is False:
            event = self._engine.next_event(0.0)
            if event is None:
                return
            self._handle(event)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                event = self._engine.next_event(WAIT_SECONDS)
                if event is not None:
                    self._handle(event)
            except Exception:
                LOG.exception('An event of the engine was lost')
                self._stopping.wait(WAIT_SECONDS)

    def _handle(self, event: dict[str, Any]) -> None:
        kind = event.get('kind')
        if kind == 'owner':
            self.settled.wait()
            self._attached.set_owner(
                (str(event['instance']), str(event['disk'])),
                int(event['uid']),
                int(event['gid']),
                int(event['mode']) & 0o7777,
            )
            return
        if kind == 'slow':
            seconds = int(event.pop('microseconds')) / 1_000_000
            event['seconds'] = f'{seconds:.3f}'
        words = ' '.join(
            f'{name}={value}'
            for name, value in event.items()
            if name not in ('kind', 'level')
        )
        if kind == 'slow':
            ENGINE_LOG.info('Slow request: %s', words)
            return
        if kind == 'alarm':
            self.alarms += 1
            ENGINE_LOG.warning('Alarm: %s', words)
            return
        level = _LEVELS.get(str(event.get('level', 'info')), logging.DEBUG)
        ENGINE_LOG.log(level, '%s', words)
