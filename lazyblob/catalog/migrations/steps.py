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
"""Steps of a migration that may have been done already.

MariaDB has no transaction around them: of a migration that was cut off some
are done, and its table of revisions tells of none. The next run skips those,
if they are what it would have made; a stranger's table is refused. The other
databases undo the whole migration, so that what is there is a stranger's, as
their own errors tell.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

from lazyblob import exceptions


def create_table(name: str, *parts: Any, **options: Any) -> None:
    """:raises Conflict: another one has its name"""
    inspector = _inspector()
    if inspector is not None and inspector.has_table(name):
        wanted = {part.name for part in parts if isinstance(part, sa.Column)}
        found = {column['name'] for column in inspector.get_columns(name)}
        if found != wanted:
            raise exceptions.Conflict(
                f'table "{name}" is in the catalog\'s database already, with '
                f'other columns; give the catalog a database of its own'
            )
        return
    op.create_table(name, *parts, **options)


def create_index(name: str, table: str, columns: list[str]) -> None:
    inspector = _inspector()
    if inspector is not None and name in {
        index['name'] for index in inspector.get_indexes(table)
    }:
        return
    op.create_index(name, table, columns)


def add_column(table: str, column: 'sa.Column[Any]') -> None:
    inspector = _inspector()
    if inspector is not None and column.name in {
        found['name'] for found in inspector.get_columns(table)
    }:
        return
    op.add_column(table, column)


def _inspector() -> sa.Inspector | None:
    """What is there now; None: nothing can have been left."""
    bind = op.get_bind()
    if bind.dialect.name not in ('mysql', 'mariadb'):
        return None
    return sa.inspect(bind)
