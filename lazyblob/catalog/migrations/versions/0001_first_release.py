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
"""The tables of the first release."""

from typing import Any

import sqlalchemy as sa
from alembic import op

from lazyblob.catalog.migrations import steps

revision = '0001'
down_revision = None
branch_labels = None
depends_on = None

# Written out, not taken from the models: they move on, this does not.
_OPTIONS: dict[str, Any] = {
    'mysql_engine': 'InnoDB',
    'mysql_charset': 'utf8mb4',
    'mysql_collate': 'utf8mb4_bin',
    'mariadb_engine': 'InnoDB',
    'mariadb_charset': 'utf8mb4',
    'mariadb_collate': 'utf8mb4_bin',
}


def upgrade() -> None:
    steps.create_table(
        'repository',
        sa.Column('id', sa.Integer, nullable=False, autoincrement=False),
        sa.Column('uuid', sa.String(36), nullable=False),
        sa.Column('format_version', sa.Integer, nullable=False),
        sa.Column('dedupe_scope', sa.String(16), nullable=False),
        sa.Column('chunk_store', sa.String(1024), nullable=False),
        sa.Column('secret', sa.String(64), nullable=False),
        sa.Column('glance_store', sa.String(255), nullable=True),
        sa.Column('created_at', sa.DateTime, nullable=False),
        sa.PrimaryKeyConstraint('id', name='pk_repository'),
        **_OPTIONS,
    )
    steps.create_table(
        'blobs',
        sa.Column('id', sa.String(255), nullable=False),
        sa.Column('name', sa.String(255), nullable=True),
        sa.Column('kind', sa.String(16), nullable=False),
        sa.Column('state', sa.String(16), nullable=False),
        sa.Column('project_id', sa.String(255), nullable=False),
        sa.Column('chunk_size_bytes', sa.Integer, nullable=False),
        sa.Column('scope', sa.String(255), nullable=False),
        sa.Column('epoch', sa.BigInteger, nullable=False),
        sa.Column('head', sa.BigInteger, nullable=False),
        sa.Column('pinned', sa.BigInteger, nullable=False),
        sa.Column('secret', sa.String(64), nullable=False),
        sa.Column('origin', sa.String(255), nullable=False),
        sa.Column('origin_version', sa.BigInteger, nullable=False),
        sa.Column('created_at', sa.DateTime, nullable=False),
        sa.Column('deleted_at', sa.DateTime, nullable=True),
        sa.PrimaryKeyConstraint('id', name='pk_blobs'),
        sa.UniqueConstraint('name', name='uq_blobs_name'),
        **_OPTIONS,
    )
    steps.create_index('ix_blobs_state', 'blobs', ['state'])
    steps.create_index('ix_blobs_project_id', 'blobs', ['project_id'])
    steps.create_table(
        'versions',
        sa.Column('blob_id', sa.String(255), nullable=False),
        sa.Column(
            'number', sa.BigInteger, nullable=False, autoincrement=False
        ),
        sa.Column('root', sa.String(64), nullable=False),
        sa.Column('size_bytes', sa.BigInteger, nullable=False),
        sa.Column('project_id', sa.String(255), nullable=False),
        sa.Column('commit_id', sa.String(255), nullable=False),
        sa.Column('created_at', sa.DateTime, nullable=False),
        sa.PrimaryKeyConstraint('blob_id', 'number', name='pk_versions'),
        sa.ForeignKeyConstraint(
            ['blob_id'], ['blobs.id'], name='fk_versions_blob_id'
        ),
        sa.UniqueConstraint(
            'blob_id', 'commit_id', name='uq_versions_blob_id_commit_id'
        ),
        **_OPTIONS,
    )
    steps.create_index('ix_versions_root', 'versions', ['root'])
    steps.create_table(
        'sessions',
        sa.Column('id', sa.String(255), nullable=False),
        sa.Column('owner', sa.String(255), nullable=False),
        sa.Column('started_at', sa.DateTime, nullable=False),
        sa.Column('ended_at', sa.DateTime, nullable=True),
        sa.PrimaryKeyConstraint('id', name='pk_sessions'),
        **_OPTIONS,
    )
    steps.create_index('ix_sessions_ended_at', 'sessions', ['ended_at'])
    steps.create_table(
        'condemned_objects',
        sa.Column('digest', sa.String(64), nullable=False),
        sa.Column('state', sa.String(16), nullable=False),
        sa.Column('condemned_at', sa.DateTime, nullable=False),
        sa.Column('deleted_at', sa.DateTime, nullable=True),
        sa.PrimaryKeyConstraint('digest', name='pk_condemned_objects'),
        **_OPTIONS,
    )
    steps.create_index(
        'ix_condemned_objects_condemned_at',
        'condemned_objects',
        ['condemned_at'],
    )
    steps.create_table(
        'bad_digests',
        sa.Column('digest', sa.String(64), nullable=False),
        sa.Column('reporter', sa.String(255), nullable=False),
        sa.Column('reported_at', sa.DateTime, nullable=False),
        sa.PrimaryKeyConstraint('digest', name='pk_bad_digests'),
        **_OPTIONS,
    )


def downgrade() -> None:
    for table in (
        'bad_digests',
        'condemned_objects',
        'sessions',
        'versions',
        'blobs',
        'repository',
    ):
        op.drop_table(table)
