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
"""The catalog in a database: SQLite, MariaDB or PostgreSQL.

Each operation is one transaction; the check of a compare-and-swap stands in
the WHERE of the UPDATE that is the transaction's first statement (contract
22). Whoever finds no row matched learns why afterwards, in the same
transaction.

An operation may run twice although it was called once: its connection was
lost after the commit was sent (:mod:`lazyblob.catalog.engine`). The second
run then meets the first's work, and answers as the first would have: by the
id of blob, commit or session, and a deletion by what it had seen to delete.

Threads: all of them; see :mod:`lazyblob.catalog.engine`.
"""

import contextlib
import datetime
import threading
from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy import exc as sa_exc
from sqlalchemy import orm

from lazyblob import digest
from lazyblob import exceptions
from lazyblob.catalog import api
from lazyblob.catalog import bad
from lazyblob.catalog import engine
from lazyblob.catalog import locations
from lazyblob.catalog import making
from lazyblob.catalog import models
from lazyblob.catalog import receiving
from lazyblob.catalog import rows
from lazyblob.catalog import statements
from lazyblob.catalog import writers

# Of lazyblob/catalog/migrations/versions: what this release reads and writes.
REVISION = '0002'
REPOSITORY_ID = 1


class SqlCatalog(api.Catalog):
    """:param transport_url: other catalogs'; not used here"""

    def __init__(self, url: str, *, transport_url: str | None = None) -> None:
        self._database = engine.Database(url)
        self._lock = threading.Lock()
        self._row: models.Repository | None = None

    def repository(self) -> api.RepositoryInfo:
        row = self._repository()
        return api.RepositoryInfo(
            row.uuid, row.format_version, row.dedupe_scope, row.chunk_store
        )

    def close(self) -> None:
        self._database.close()

    # Sessions

    def begin_session(self, owner: str, session_id: str) -> list[str]:
        def begin(session: orm.Session) -> list[str]:
            session.execute(
                statements.BEGIN_SESSION,
                {
                    'new_id': session_id,
                    'new_owner': owner,
                    'now': rows.now(),
                },
            )
            return bad.first(session)

        self._repository()
        try:
            return self._database.write(begin, is_synced=False)
        except sa_exc.IntegrityError:
            # Repeated. One that has ended is found out by publish.
            return self._database.read(bad.first)

    def end_session(self, session_id: str) -> None:
        self._database.write(
            lambda session: writers.end_session(session, session_id),
            is_synced=False,
        )

    def sessions(self) -> list[api.Session]:
        def look(session: orm.Session) -> list[api.Session]:
            found = session.scalars(
                sa.select(models.Session)
                .where(models.Session.ended_at.is_(None))
                .order_by(models.Session.started_at, models.Session.id)
            )
            return [rows.session(row) for row in found]

        return self._database.read(look)

    # Bad digests

    def report_bad(self, digests: Sequence[str], reporter: str) -> None:
        while True:
            # Another reporter's rows are seen by the next look.
            with contextlib.suppress(sa_exc.IntegrityError):
                return self._database.write(
                    lambda session: bad.report(session, digests, reporter)
                )

    def bad_digests(
        self,
        among: Sequence[str] | None = None,
        after: str = '',
        limit: int = api.BAD_DIGESTS_PAGE,
    ) -> list[api.BadDigest]:
        return self._database.read(
            lambda session: bad.page(session, among, after, limit)
        )

    def forget_bad(self, digests: Sequence[str]) -> None:
        self._database.write(lambda session: bad.forget(session, digests))

    # Blobs and versions

    def create(
        self,
        blob_id: str,
        *,
        kind: api.Kind,
        project_id: str,
        chunk_size_bytes: int,
        name: str = '',
    ) -> api.Blob:
        new = self._new(blob_id, kind, project_id, name)
        with contextlib.suppress(sa_exc.IntegrityError):
            return self._database.write(
                lambda session: making.insert(session, new, chunk_size_bytes)
            )
        try:
            return self._database.write(
                lambda session: making.adopt(session, new, chunk_size_bytes)
            )
        except sa_exc.IntegrityError:
            raise exceptions.Conflict(
                f'name "{name}" is used already'
            ) from None

    def get(self, blob_id: str) -> api.Blob:
        return self._database.read(
            lambda session: rows.blob(rows.live(session, blob_id))
        )

    def find(self, name: str) -> api.Blob:
        def look(session: orm.Session) -> api.Blob:
            found = session.scalar(
                sa.select(models.Blob).where(models.Blob.name == name)
            )
            return rows.blob(found or rows.live(session, name))

        return self._database.read(look)

    def list_blobs(self) -> list[api.Blob]:
        def look(session: orm.Session) -> list[api.Blob]:
            found = session.scalars(
                sa.select(models.Blob)
                .where(models.Blob.state != api.State.TOMBSTONE.value)
                .order_by(models.Blob.created_at, models.Blob.id)
            )
            return [rows.blob(row) for row in found]

        self._repository()
        return self._database.read(look)

    def version(self, blob_id: str, number: int | None = None) -> api.Version:
        return self._database.read(
            lambda session: rows.version(rows.named(session, blob_id, number))
        )

    def versions(self, blob_id: str) -> list[api.Version]:
        def look(session: orm.Session) -> list[api.Version]:
            found = session.scalars(
                sa.select(models.Version)
                .where(models.Version.blob_id == blob_id)
                .order_by(models.Version.number)
            ).all()
            if not found:
                rows.live(session, blob_id)
            return [rows.version(row) for row in found]

        return self._database.read(look)

    def list_versions(
        self, after_blob: str = '', after_number: int = 0, limit: int = 1000
    ) -> list[api.Version]:
        def look(session: orm.Session) -> list[api.Version]:
            version = models.Version
            found = session.scalars(
                sa.select(version)
                .where(
                    # A range of the primary key to every optimizer.
                    version.blob_id >= after_blob,
                    sa.or_(
                        version.blob_id > after_blob,
                        version.number > after_number,
                    ),
                )
                .order_by(version.blob_id, version.number)
                .limit(limit)
            )
            return [rows.version(row) for row in found]

        return self._database.read(look)

    def clones(self, blob_id: str) -> list[api.Blob]:
        def look(session: orm.Session) -> list[api.Blob]:
            found = session.scalars(
                sa.select(models.Blob)
                .where(models.Blob.origin == blob_id)
                .order_by(models.Blob.created_at, models.Blob.id)
            )
            return [rows.blob(row) for row in found]

        return self._database.read(look)

    def clone(
        self,
        source: str,
        number: int | None,
        *,
        blob_id: str,
        kind: api.Kind,
        project_id: str,
        name: str = '',
    ) -> api.Version:
        new = self._new(blob_id, kind, project_id, name)

        def again() -> api.Version | None:
            return self._database.read(
                lambda session: making.cloned(session, new, source, number)
            )

        existing = again()
        if existing is None:
            with contextlib.suppress(sa_exc.IntegrityError):
                return self._database.write(
                    lambda session: making.clone(session, new, source, number)
                )
            existing = again()
        if existing is None:
            raise exceptions.Conflict(f'name "{name}" is used already')
        return existing

    def claim(self, blob_id: str, secret: str) -> int:
        return self._database.write(
            lambda session: writers.claim(session, blob_id, secret)
        )

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
        image: api.NewImage | None = None,
        drop_parent: bool = False,
        ends_session: bool = False,
    ) -> api.Version:
        new = None
        if image is not None:
            new = self._new(
                image.id, api.Kind.IMAGE, image.project_id, image.name
            )

        def swap(session: orm.Session) -> api.Version:
            row = writers.swap_head(session, blob_id, epoch, parent, secret)
            if row is None:
                found = writers.landed_before(
                    session, blob_id, commit_id, epoch, parent, secret
                )
                if ends_session:
                    # Another one's: the first try's, if that was of a writer
                    # that died.
                    writers.end_session(session, session_id)
                return found
            use = writers.hold_session
            if ends_session:
                use = writers.use_up_session
            use(session, blob_id, session_id)
            if new is not None:
                making.snapshot(session, new, row, root, size_bytes)
            if drop_parent:
                writers.drop(session, row, parent)
            return rows.add_version(
                session,
                blob_id,
                parent + 1,
                root=root,
                size_bytes=size_bytes,
                project_id=row.project_id,
                commit_id=commit_id,
            )

        try:
            return self._database.write(swap)
        except sa_exc.IntegrityError as exc:
            raise exceptions.Conflict(
                f'blob "{blob_id}" was not published: the image\'s id or '
                f'name, or the commit id "{commit_id}", is used already'
            ) from exc

    def find_commit(self, blob_id: str, commit_id: str) -> api.Version | None:
        def look(session: orm.Session) -> api.Version | None:
            rows.live(session, blob_id)
            found = rows.commit(session, blob_id, commit_id)
            return rows.version(found) if found else None

        return self._database.read(look)

    def received(
        self, blob: api.Blob, version: api.Version
    ) -> api.Version | None:
        return self._database.read(
            lambda session: receiving.look(session, blob, version)
        )

    def receive(
        self, blob: api.Blob, version: api.Version, *, session_id: str
    ) -> api.Version:
        scope = self._scope(blob.project_id)

        def take(session: orm.Session) -> api.Version:
            return receiving.take(session, blob, version, scope, session_id)

        with contextlib.suppress(sa_exc.IntegrityError):
            return self._database.write(take)
        try:
            return self._database.write(take)  # Somebody else was first.
        except sa_exc.IntegrityError as exc:
            raise receiving.used_name(blob) from exc

    def activate(self, blob_id: str) -> None:
        def turn(session: orm.Session) -> None:
            blob = models.Blob
            session.execute(
                sa.update(blob)
                .where(
                    blob.id == blob_id,
                    blob.state == api.State.PROVISIONAL.value,
                )
                .values(state=api.State.ACTIVE.value)
            )
            rows.live(session, blob_id)

        self._database.write(turn)

    def delete(
        self, blob_id: str, *, project_id: str | None = None, secret: str = ''
    ) -> None:
        seen: list[datetime.datetime] = []

        def drop(session: orm.Session) -> None:
            try:
                found = rows.live(session, blob_id, is_locking=True)
            except exceptions.NotFound:
                if seen:
                    return  # By an earlier run, whose end was not heard of.
                raise
            if seen and found.created_at != seen[0]:
                return  # And made again since.
            if project_id is not None and found.project_id != project_id:
                raise exceptions.Forbidden(
                    f'blob "{blob_id}" belongs to another project'
                )
            rows.check_secret(found, secret)
            seen[:] = [found.created_at]
            session.execute(
                sa.delete(models.Version).where(
                    models.Version.blob_id == blob_id
                )
            )
            if found.kind == api.Kind.IMAGE:
                found.state = api.State.TOMBSTONE.value
                found.name = None
                found.epoch += 1
                found.deleted_at = rows.now()
            else:
                session.delete(found)

        self._database.write(drop)

    def delete_version(self, blob_id: str, number: int) -> None:
        was_seen = False

        def drop(session: orm.Session) -> None:
            nonlocal was_seen
            try:
                found = rows.live(session, blob_id, is_locking=True)
                version = rows.existing(session, found, number)
            except exceptions.NotFound:
                if was_seen:
                    return  # As in delete.
                raise
            if number in (found.head, found.pinned):
                raise exceptions.Conflict(
                    f'version {number} of blob "{blob_id}" is its newest, or '
                    f'an attached disk reads it; delete the blob instead'
                )
            session.delete(version)
            was_seen = True

        self._database.write(drop)

    # Locations

    def mint_location(
        self, blob_id: str, number: int, secret: str = ''
    ) -> str:
        def look(session: orm.Session) -> None:
            found = rows.live(session, blob_id)
            rows.check_secret(found, secret)
            rows.existing(session, found, number)

        self._database.read(look)
        row = self._repository()
        return locations.mint(
            bytes.fromhex(row.secret), row.uuid, blob_id, number
        )

    def check_location(self, url: str) -> api.Version:
        row = self._repository()
        found = locations.check(bytes.fromhex(row.secret), row.uuid, url)
        return self.version(found.blob_id, found.number)

    # Inside

    def _repository(self) -> models.Repository:
        """The repository's row; it never changes."""
        with self._lock:
            if self._row is None:
                self._row = self._database.read(_repository)
            return self._row

    def _scope(self, project_id: str) -> str:
        if self._repository().dedupe_scope == 'project':
            return digest.project_scope(project_id)
        return digest.REPOSITORY_SCOPE

    def _new(
        self, blob_id: str, kind: api.Kind, project_id: str, name: str
    ) -> making.NewBlob:
        scope = self._scope(project_id)
        return making.NewBlob(blob_id, kind, project_id, scope, name)


def _repository(session: orm.Session) -> models.Repository:
    revision = session.scalar(
        sa.text('SELECT version_num FROM alembic_version')
    )
    if revision != REVISION:
        raise exceptions.InvalidConfiguration(
            f'the catalog\'s schema is at revision "{revision}" and this '
            f'release needs "{REVISION}"; run "lazyimage init" to upgrade it'
        )
    row = session.get(models.Repository, REPOSITORY_ID)
    if row is None:
        raise exceptions.NotFound(
            'the catalog holds no repository; run "lazyimage init"'
        )
    return row
