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
"""The catalog's tables.

Identifiers compare byte by byte on every database. Times are UTC. Secrets of
attachments are kept as SHA-256. ``sessions`` and ``condemned_objects`` are
there for the collector, so that its protocol can count on every writer from
the first release on.
"""

import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

ID_LENGTH = 255
DIGEST_LENGTH = 64
_NAMING = {
    'ix': 'ix_%(table_name)s_%(column_0_N_name)s',
    'uq': 'uq_%(table_name)s_%(column_0_N_name)s',
    'fk': 'fk_%(table_name)s_%(column_0_N_name)s',
    'pk': 'pk_%(table_name)s',
}
TABLE_OPTIONS = {
    'mysql_engine': 'InnoDB',
    'mysql_charset': 'utf8mb4',
    'mysql_collate': 'utf8mb4_bin',
    'mariadb_engine': 'InnoDB',
    'mariadb_charset': 'utf8mb4',
    'mariadb_collate': 'utf8mb4_bin',
}

Text = sa.String(ID_LENGTH)
Digest = sa.String(DIGEST_LENGTH)


def _epoch() -> orm.MappedColumn[int]:
    return orm.mapped_column(sa.BigInteger, server_default='0')


class Base(orm.DeclarativeBase):
    metadata = sa.MetaData(naming_convention=_NAMING)
    __table_args__: Any = TABLE_OPTIONS


class Repository(Base):
    """The one row that says which repository this is.

    :ivar secret: the key of the locations' MACs, hexadecimal
    :ivar glance_store: the only Glance store that may use it (contract 38)
    :ivar collection_epoch: the collector's round; it is not built yet
    """

    __tablename__ = 'repository'

    id: orm.Mapped[int] = orm.mapped_column(
        sa.Integer, primary_key=True, autoincrement=False
    )
    uuid: orm.Mapped[str] = orm.mapped_column(sa.String(36))
    format_version: orm.Mapped[int] = orm.mapped_column(sa.Integer)
    dedupe_scope: orm.Mapped[str] = orm.mapped_column(sa.String(16))
    chunk_store: orm.Mapped[str] = orm.mapped_column(sa.String(1024))
    secret: orm.Mapped[str] = orm.mapped_column(sa.String(64))
    glance_store: orm.Mapped[str | None] = orm.mapped_column(Text)
    created_at: orm.Mapped[datetime.datetime] = orm.mapped_column(sa.DateTime)
    collection_epoch: orm.Mapped[int] = _epoch()


class Blob(Base):
    """A disk's history; a tombstone keeps only its id.

    :ivar name: NULL where there is none, so that it is unique where it is
    :ivar pinned: the version that its attached mirror reads from, or 0
    :ivar secret: SHA-256 of the attachment's secret, or ''
    """

    __tablename__ = 'blobs'

    id: orm.Mapped[str] = orm.mapped_column(Text, primary_key=True)
    name: orm.Mapped[str | None] = orm.mapped_column(Text, unique=True)
    kind: orm.Mapped[str] = orm.mapped_column(sa.String(16))
    state: orm.Mapped[str] = orm.mapped_column(sa.String(16), index=True)
    project_id: orm.Mapped[str] = orm.mapped_column(Text, index=True)
    chunk_size_bytes: orm.Mapped[int] = orm.mapped_column(sa.Integer)
    scope: orm.Mapped[str] = orm.mapped_column(Text)
    epoch: orm.Mapped[int] = orm.mapped_column(sa.BigInteger)
    head: orm.Mapped[int] = orm.mapped_column(sa.BigInteger)
    pinned: orm.Mapped[int] = orm.mapped_column(sa.BigInteger)
    secret: orm.Mapped[str] = orm.mapped_column(Digest)
    origin: orm.Mapped[str] = orm.mapped_column(Text, index=True)
    origin_version: orm.Mapped[int] = orm.mapped_column(sa.BigInteger)
    created_at: orm.Mapped[datetime.datetime] = orm.mapped_column(sa.DateTime)
    deleted_at: orm.Mapped[datetime.datetime | None] = orm.mapped_column(
        sa.DateTime
    )


class Version(Base):
    __tablename__ = 'versions'
    __table_args__ = (
        sa.UniqueConstraint('blob_id', 'commit_id'),
        TABLE_OPTIONS,
    )

    blob_id: orm.Mapped[str] = orm.mapped_column(
        Text, sa.ForeignKey('blobs.id'), primary_key=True
    )
    number: orm.Mapped[int] = orm.mapped_column(
        sa.BigInteger, primary_key=True, autoincrement=False
    )
    root: orm.Mapped[str] = orm.mapped_column(Digest, index=True)
    size_bytes: orm.Mapped[int] = orm.mapped_column(sa.BigInteger)
    project_id: orm.Mapped[str] = orm.mapped_column(Text)
    commit_id: orm.Mapped[str] = orm.mapped_column(Text)
    created_at: orm.Mapped[datetime.datetime] = orm.mapped_column(sa.DateTime)


class Session(Base):
    """A writer, from before its first existence check until it is done."""

    __tablename__ = 'sessions'

    id: orm.Mapped[str] = orm.mapped_column(Text, primary_key=True)
    owner: orm.Mapped[str] = orm.mapped_column(Text)
    started_at: orm.Mapped[datetime.datetime] = orm.mapped_column(sa.DateTime)
    ended_at: orm.Mapped[datetime.datetime | None] = orm.mapped_column(
        sa.DateTime, index=True
    )
    collection_epoch: orm.Mapped[int] = _epoch()


class CondemnedObject(Base):
    """An object that no version reached, on its way out (contract 31)."""

    __tablename__ = 'condemned_objects'

    digest: orm.Mapped[str] = orm.mapped_column(Digest, primary_key=True)
    state: orm.Mapped[str] = orm.mapped_column(sa.String(16))
    condemned_at: orm.Mapped[datetime.datetime] = orm.mapped_column(
        sa.DateTime, index=True
    )
    deleted_at: orm.Mapped[datetime.datetime | None] = orm.mapped_column(
        sa.DateTime
    )
    collection_epoch: orm.Mapped[int] = _epoch()


class BadDigest(Base):
    """An object that was found damaged or missing; writers overwrite it."""

    __tablename__ = 'bad_digests'

    digest: orm.Mapped[str] = orm.mapped_column(Digest, primary_key=True)
    reporter: orm.Mapped[str] = orm.mapped_column(Text)
    reported_at: orm.Mapped[datetime.datetime] = orm.mapped_column(sa.DateTime)
