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
"""What every catalog promises: the one mutable state of a repository.

Two implementations: :mod:`lazyblob.catalog.sql` is the database, and
``nova_lazyimage.conductor.rpcapi`` asks the conductor, so that compute nodes
hold no database credentials. Both run the same conformance suite.

Every call is one transaction and may be repeated: an answer that was lost is
asked for again with the same arguments. Arguments and answers are plain
data, so that they travel unchanged.

Words: a *blob* is a disk's history; a *version* of it is immutable. A blob
has one writer, named by an *epoch*; a publish with an old epoch is refused.
"""

import abc
import dataclasses
import enum
from collections.abc import Sequence

from lazyblob import exceptions

#: How many bad digests a writer is told at once.
BAD_DIGESTS_PAGE = 1000


class Kind(str, enum.Enum):
    """Why a blob exists."""

    __str__ = str.__str__

    IMAGE = 'image'  # a Glance image points to it, or a person named it
    DISK = 'disk'  # an instance writes to it


class State(str, enum.Enum):
    """How far a blob has come."""

    __str__ = str.__str__

    PROVISIONAL = 'provisional'  # made by a snapshot; Glance has not read it
    ACTIVE = 'active'
    TOMBSTONE = 'tombstone'  # deleted; refuses what a late snapshot publishes


@dataclasses.dataclass(frozen=True)
class RepositoryInfo:
    """What identifies a repository."""

    uuid: str
    format_version: int
    dedupe_scope: str  # 'repository' or 'project'
    chunk_store: str  # the URL it was initialised with, credentials masked


@dataclasses.dataclass(frozen=True)
class Blob:
    """A disk's history.

    :ivar head: number of its newest version; 0 before the first. An image
        that is created again after a deletion begins with its old head.
    :ivar origin: blob it was cloned from, with ``origin_version``
    """

    id: str
    name: str
    kind: Kind
    state: State
    project_id: str
    chunk_size_bytes: int
    scope: str
    epoch: int
    head: int
    origin: str
    origin_version: int
    created_at: str


@dataclasses.dataclass(frozen=True)
class Version:
    """A complete raw disk at one point in time.

    :ivar root: hexadecimal digest of its descriptor
    :ivar commit_id: the publish that made it; repeating that answers it
    """

    blob_id: str
    number: int
    root: str
    size_bytes: int
    project_id: str
    commit_id: str
    created_at: str


@dataclasses.dataclass(frozen=True)
class Session:
    """A writer that has begun and not ended: at work, or dead."""

    id: str
    owner: str
    started_at: str


@dataclasses.dataclass(frozen=True)
class BadDigest:
    """An object that somebody found damaged or missing.

    :ivar digest: hexadecimal
    """

    digest: str
    reporter: str
    reported_at: str


@dataclasses.dataclass(frozen=True)
class NewImage:
    """The image blob that a snapshot publishes beside its version."""

    id: str
    project_id: str
    name: str = ''


class Catalog(abc.ABC):
    """The operations; errors are those of :mod:`lazyblob.exceptions`.

    ``secret`` is the attachment's random secret, set by :meth:`claim`: who
    does not know it cannot publish, mint or release for a disk blob
    (contract 34). Image blobs made by :meth:`create` have none ('').
    """

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Let go of connections; the catalog is not used after it."""

    @abc.abstractmethod
    def repository(self) -> RepositoryInfo: ...

    # Sessions: a row from before a writer's first existence check until it
    # is done, so that the collector never deletes what it relies on.

    @abc.abstractmethod
    def begin_session(self, owner: str, session_id: str) -> list[str]:
        """The first page of bad digests, which the writer overwrites.

        As long as :data:`BAD_DIGESTS_PAGE`: there may be more, to be asked
        for by :meth:`bad_digests`.
        """

    @abc.abstractmethod
    def end_session(self, session_id: str) -> None: ...

    @abc.abstractmethod
    def sessions(self) -> list[Session]:
        """Those that have not ended, the oldest first."""

    # Bad digests: a hint for writers (contracts, "Formats")

    @abc.abstractmethod
    def report_bad(self, digests: Sequence[str], reporter: str) -> None:
        """List objects as damaged or missing; who was first stays named."""

    @abc.abstractmethod
    def bad_digests(
        self,
        among: Sequence[str] | None = None,
        after: str = '',
        limit: int = BAD_DIGESTS_PAGE,
    ) -> list[BadDigest]:
        """A page of the list, ascending.

        :param among: only of these
        :param after: the last digest of the page before
        """

    @abc.abstractmethod
    def forget_bad(self, digests: Sequence[str]) -> None:
        """They are sound again; those that are not listed are no error."""

    # Blobs and versions

    @abc.abstractmethod
    def create(
        self,
        blob_id: str,
        *,
        kind: Kind,
        project_id: str,
        chunk_size_bytes: int,
        name: str = '',
    ) -> Blob:
        """A blob without a version, epoch 1; repeating is harmless.

        It is answered again as long as nobody published to it or claimed
        it, so that what a dead upload left behind does not stand against
        the next one; of two that race, publish refuses the second.

        An image may be created again after it was deleted, as Glance does
        when an import is repeated. Its head is then that of before: versions
        go on counting, so that an old location never names new bytes.

        :param name: unique where it is not empty; Glance's images need none
        :raises Conflict: the id is used, a tombstone of another kind, or the
            name is used
        """

    @abc.abstractmethod
    def get(self, blob_id: str) -> Blob:
        """:raises NotFound: no such blob, or a tombstone"""

    @abc.abstractmethod
    def find(self, name: str) -> Blob:
        """By name, or by id. :raises NotFound:"""

    @abc.abstractmethod
    def list_blobs(self) -> list[Blob]: ...

    @abc.abstractmethod
    def version(self, blob_id: str, number: int | None = None) -> Version:
        """One version, or the head. :raises NotFound:"""

    @abc.abstractmethod
    def versions(self, blob_id: str) -> list[Version]: ...

    @abc.abstractmethod
    def list_versions(
        self, after_blob: str = '', after_number: int = 0, limit: int = 1000
    ) -> list[Version]:
        """A page of all versions, by blob id and number.

        :param after_blob: and ``after_number``: the last of the page before
        """

    @abc.abstractmethod
    def clones(self, blob_id: str) -> list[Blob]:
        """The blobs that came of a blob, deleted or not, the oldest first."""

    @abc.abstractmethod
    def clone(
        self,
        source: str,
        number: int | None,
        *,
        blob_id: str,
        kind: Kind,
        project_id: str,
        name: str = '',
    ) -> Version:
        """A new blob whose version 1 is the source's; repeating is harmless.

        The root is copied into the clone's own row: deleting the source
        never touches it (contract 26).
        """

    @abc.abstractmethod
    def claim(self, blob_id: str, secret: str) -> int:
        """Become the writer: raises the epoch, sets the secret; the epoch.

        The head is pinned for the mirror that reads from it (contract 26);
        with the secret that is set already, as a restarted agent has, the
        version that was pinned stays pinned.
        """

    @abc.abstractmethod
    def publish(
        self,
        blob_id: str,
        *,
        epoch: int,
        parent: int,
        commit_id: str,
        root: str,
        size_bytes: int,
        session_id: str,
        secret: str = '',
        image: NewImage | None = None,
        drop_parent: bool = False,
        ends_session: bool = False,
    ) -> Version:
        """The only commit point: compare-and-swap on epoch and head.

        One transaction writes the version, the snapshot's image blob (with
        the same root as its version 1, provisional) and drops the parent's
        row if asked and nothing pins it. A repeated ``commit_id`` answers
        the first result.

        :param ends_session: the writer is done: with the version comes its
            session's end, which need not be asked for then
        :raises StaleWriter: the epoch is old, or the head has moved on
        :raises Conflict: the session is gone, or the image id is taken
        """

    @abc.abstractmethod
    def find_commit(self, blob_id: str, commit_id: str) -> Version | None:
        """Whether a publish landed; ask after :meth:`claim`."""

    def received(self, blob: Blob, version: Version) -> Version | None:
        """What :meth:`receive` made already; None: it can be received.

        :raises Conflict: something stands against it
        """
        raise _receives_nothing()

    def receive(
        self, blob: Blob, version: Version, *, session_id: str
    ) -> Version:
        """Take in a version of another repository, whose objects are here.

        It keeps its number, commit id and time, and its blob is made, as
        ``blob`` says, if it is not there (contract 45); repeating it
        answers the first result. Only where the database itself is reached:
        no conductor does this for others.

        :param version: with the root that it has *here*
        :raises Conflict: another blob has the id or the name, it was deleted
            or written to here, the number is another commit's, or the
            session is gone
        """
        raise _receives_nothing()

    @abc.abstractmethod
    def activate(self, blob_id: str) -> None:
        """Glance's door has read it: no longer provisional."""

    @abc.abstractmethod
    def delete(
        self, blob_id: str, *, project_id: str | None = None, secret: str = ''
    ) -> None:
        """Drop a blob and its versions; an image leaves a tombstone.

        :param project_id: refuse unless it owns the blob; None: any
        :raises NotFound: no such blob (already deleted)
        :raises Forbidden: another project's, or the wrong secret
        """

    @abc.abstractmethod
    def delete_version(self, blob_id: str, number: int) -> None:
        """:raises Conflict: it is the head, or an attached mirror reads it"""

    # Locations

    @abc.abstractmethod
    def mint_location(
        self, blob_id: str, number: int, secret: str = ''
    ) -> str:
        """The URL of a version, with its MAC."""

    @abc.abstractmethod
    def check_location(self, url: str) -> Version:
        """The version that a URL names.

        :raises BadLocation: malformed, foreign or forged
        :raises NotFound: no such version any more
        """


def _receives_nothing() -> exceptions.InvalidConfiguration:
    return exceptions.InvalidConfiguration(
        'this catalog takes in no copies; run the copy where the '
        'configuration names the database itself, as the conductor\'s does'
    )
