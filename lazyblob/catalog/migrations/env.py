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
"""What alembic runs; the connection comes from lazyblob.catalog.schema."""

import alembic.context

from lazyblob.catalog import models

connection = alembic.context.config.attributes['connection']
alembic.context.configure(
    connection=connection,
    target_metadata=models.Base.metadata,
    # SQLite alters tables by copying them.
    render_as_batch=connection.dialect.name == 'sqlite',
    transactional_ddl=connection.dialect.name != 'mysql',
)
with alembic.context.begin_transaction():
    alembic.context.run_migrations()
