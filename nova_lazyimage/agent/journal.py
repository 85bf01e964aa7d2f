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
"""What the agent must know after it died: attachments, commits, images.

One JSON file an attachment, replaced as a whole and synced before anything
relies on it (contracts 21 and 25). A record's states:

``attaching``
    written before the clone is made; a restart undoes it
``attached``
    answered to the client; a restart serves it again, asking nobody
``releasing``
    local state is going or gone; the blob is deleted when the catalog answers

The order of writes is what makes a crash harmless; see attachments.py and
commits.py for the steps between them. Records hold the attachment's secret:
mode 0600.

Threads: a record belongs to whoever holds its mirror's lock; the journal
itself may be used by all.
"""

import dataclasses
import enum
import json
import pathlib
import threading
import uuid
from typing import Any

from oslo_log import log as logging

from nova_lazyimage.agent import state

LOG = logging.getLogger(__name__)

FORMAT = 1
RESULTS_MAX = 8

# Ids of instance blobs: the same attachment clones the same blob.
NAMESPACE = uuid.UUID('6bb3a5a5-0d2c-5f5e-9f1c-9a6a4c5b1d6e')


class State(str, enum.Enum):
    """How far an attachment has come."""

    ATTACHING = 'attaching'
    ATTACHED = 'attached'
    RELEASING = 'releasing'


class Stage(str, enum.Enum):
    """How far a COMMIT under way has come."""

    SEALED = 'sealed'  # chunks go to the store
    PUBLISHING = 'publishing'  # the outcome is the catalog's


@dataclasses.dataclass
class Point:
    """A version of the blob that is written."""

    version: int
    root: str


@dataclasses.dataclass
class Commit:
    """A COMMIT under way: what a restart must know of it."""

    commit_id: str
    stage: Stage
    image_id: str = ''
    project_id: str = ''
    name: str = ''
    root: str = ''
    size_bytes: int = 0
    total_bytes: int = 0


@dataclasses.dataclass
class Result:
    """How a COMMIT ended."""

    commit_id: str
    state: str  # published, failed
    blob_id: str
    version: int = 0
    root: str = ''
    image_id: str = ''
    location: str = ''
    total_bytes: int = 0
    committed_bytes: int = 0
    statistics: dict[str, Any] = dataclasses.field(default_factory=dict)
    error_code: str = ''
    error: str = ''


@dataclasses.dataclass
class Record:
    """One attachment.

    :ivar clone: blob it is a clone of; '': ``blob_id`` was there before and
        stays
    :ivar base: what the mirror reads where nothing was written (the attach
        base)
    :ivar parent: what the next COMMIT builds on
    :ivar head: the blob's newest version, where a revert made another one the
        parent; 0: it is the parent
    :ivar turn: how often the disk was reverted; each turn has its own files
    """

    attach_id: str
    instance: str
    disk: str
    state: State
    blob_id: str
    secret: str
    project_id: str = ''
    clone: str = ''
    clone_version: int = 0
    epoch: int = 0
    base: Point | None = None
    parent: Point | None = None
    size_bytes: int = 0
    base_size_bytes: int = 0
    chunk_size_bytes: int = 0
    chunk_key: str = ''
    uid: int = 0
    gid: int = 0
    mode: int = 0o660
    keep_blob: bool = False
    head: int = 0
    turn: int = 0
    commit: Commit | None = None
    results: list[Result] = dataclasses.field(default_factory=list)

    @property
    def key(self) -> tuple[str, str]:
        """Which mirror it is."""
        return self.instance, self.disk

    @property
    def files_id(self) -> str:
        """Names its files, and the engine's attachment."""
        return f'{self.attach_id}.{self.turn}' if self.turn else self.attach_id

    def add_result(self, result: Result) -> None:
        """Keep how a COMMIT ended, for a while."""
        self.results = [
            *(r for r in self.results if r.commit_id != result.commit_id),
            result,
        ][-RESULTS_MAX:]

    def result(self, commit_id: str) -> Result | None:
        """How that COMMIT ended."""
        for result in self.results:
            if result.commit_id == commit_id:
                return result
        return None

    def dumps(self) -> bytes:
        """As a file."""
        data = {'format': FORMAT, **dataclasses.asdict(self)}
        return (json.dumps(data, indent=1) + '\n').encode()

    @classmethod
    def loads(cls, data: bytes) -> 'Record':
        """:raises ValueError: not a record of this format"""
        fields = json.loads(data)
        if not isinstance(fields, dict):
            raise ValueError('it is no object')
        if fields.pop('format', None) != FORMAT:
            raise ValueError(f'its format is not {FORMAT}')
        try:
            fields['state'] = State(fields['state'])
            for name in ('base', 'parent'):
                if fields[name] is not None:
                    fields[name] = Point(**fields[name])
            if fields['commit'] is not None:
                fields['commit'] = Commit(**fields['commit'])
                fields['commit'].stage = Stage(fields['commit'].stage)
            fields['results'] = [Result(**r) for r in fields['results']]
            return cls(**fields)
        except (KeyError, TypeError) as exc:
            raise ValueError(f'a field is missing or unknown: {exc}') from exc


@dataclasses.dataclass
class Image:
    """An image blob that a COMMIT of this host made (or was to make)."""

    image_id: str
    created: float


def blob_id_for(instance: str, disk: str, attach_id: str) -> str:
    """The id of an attachment's clone (contract 25)."""
    return str(uuid.uuid5(NAMESPACE, f'{instance}/{disk}/{attach_id}'))


class Journal:
    """The records of one state directory; the caller holds its lock."""

    def __init__(self, folders: state.Folders) -> None:
        self._folder = folders.journal
        self._images = folders.images
        self._mutex = threading.Lock()
        self._forgotten: set[str] = set()
        self.damaged: list[str] = []

    def load(self) -> list[Record]:
        """Every attachment that can be read.

        A damaged file stands for a disk that nobody serves (its server is
        refused, contract 37) and never against the others; what may belong
        to it is kept.
        """
        records = []
        for path in sorted(self._folder.glob('*.json')):
            try:
                records.append(Record.loads(path.read_bytes()))
            except (OSError, ValueError) as exc:
                message = (
                    f'could not read "{path}": {exc}; restore the file and '
                    'restart the agent: until then its disk is not served'
                )
                LOG.error('%s', message)
                self.damaged.append(message)
        return records

    def save(self, record: Record) -> None:
        """Make a record durable; one that was forgotten stays so."""
        with self._mutex:
            if record.attach_id in self._forgotten:
                return
            state.replace(self._path(record.attach_id), record.dumps())

    def forget(self, record: Record) -> None:
        """Delete a record durably."""
        with self._mutex:
            self._forgotten.add(record.attach_id)
            state.remove(self._path(record.attach_id))

    def session_id(self, boot_id: str) -> str:
        """The session noted in live maps: the same until the host boots.

        :param boot_id: the kernel's; live maps of an older boot are not
            believed
        """
        path = self._folder / 'session'
        with self._mutex:
            try:
                boot, session = path.read_text().split()
            except (FileNotFoundError, ValueError):
                boot, session = '', ''
            if boot != boot_id:
                session = str(uuid.uuid4())
                state.replace(path, f'{boot_id} {session}\n'.encode())
            return session

    def save_image(self, image: Image) -> None:
        """Remember that a COMMIT of this host makes an image blob."""
        with self._mutex:
            data = json.dumps(dataclasses.asdict(image)).encode()
            state.replace(self._images / image.image_id, data)

    def image(self, image_id: str) -> Image | None:
        """An image blob of this host."""
        try:
            fields = json.loads((self._images / image_id).read_bytes())
        except FileNotFoundError:
            return None
        return Image(**fields)

    def images(self) -> list[Image]:
        """Every image blob of this host that is not known to be read."""
        names = [path.name for path in self._images.iterdir()]
        found = [self.image(n) for n in names if not n.startswith('.')]
        return [image for image in found if image is not None]

    def forget_image(self, image_id: str) -> None:
        """It is dropped, or Glance's now."""
        with self._mutex:
            state.remove(self._images / image_id)

    def _path(self, attach_id: str) -> pathlib.Path:
        return self._folder / f'{attach_id}.json'
