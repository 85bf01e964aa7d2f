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
"""A writer's session, from before its first question (contract 31)."""

import contextlib
import logging
import uuid
from collections.abc import Iterator

from lazyblob import bad
from lazyblob import commit
from lazyblob import exceptions
from lazyblob.catalog import api

LOG = logging.getLogger(__name__)


@contextlib.contextmanager
def opened(catalog: api.Catalog) -> Iterator[tuple[str, bad.Listed]]:
    """A session that ends with the block: its id, and what is bad there."""
    session_id = uuid.uuid4().hex
    page = catalog.begin_session(commit.default_owner(), session_id)
    try:
        yield session_id, bad.Listed(catalog, page)
    finally:
        try:
            catalog.end_session(session_id)
        except exceptions.CatalogUnavailable as exc:
            # The collector ends sessions whose owner is gone.
            LOG.warning('Session %s was not ended: %s', session_id, exc)
