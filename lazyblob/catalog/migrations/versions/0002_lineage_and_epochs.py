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
"""Lineage by an index; a place for the collector's epochs.

The collector will count its rounds in ``repository.collection_epoch``; a
session keeps the one that it began in and a condemned object the one that
condemned it, so that "every session that was open then" is told without a
clock.
"""

import sqlalchemy as sa
from alembic import op

from lazyblob.catalog.migrations import steps

revision = '0002'
down_revision = '0001'
branch_labels = None
depends_on = None

_TABLES = ('repository', 'sessions', 'condemned_objects')


def upgrade() -> None:
    steps.create_index('ix_blobs_origin', 'blobs', ['origin'])
    for table in _TABLES:
        steps.add_column(
            table,
            sa.Column(
                'collection_epoch',
                sa.BigInteger,
                nullable=False,
                server_default='0',
            ),
        )


def downgrade() -> None:
    for table in reversed(_TABLES):
        with op.batch_alter_table(table) as batch:
            batch.drop_column('collection_epoch')
    op.drop_index('ix_blobs_origin', 'blobs')
