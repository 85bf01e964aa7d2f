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
"""A clone that is larger than what it was cloned from.

The clone's row comes first, then a version of the new size that shares all
chunks; the first one goes with the publish of the second. A crash between the
two leaves an ordinary clone; the same call completes it.
"""

from typing import TYPE_CHECKING

from lazyblob import exceptions
from lazyblob.catalog import api

if TYPE_CHECKING:
    from lazyblob import repository


def check(
    catalog: api.Catalog, source: str, number: int | None, size_bytes: int
) -> None:
    """Before anything is made. :raises InvalidConfiguration: it would shrink

    A source that is gone is no fault here: the clone may have been made.
    """
    try:
        version = catalog.version(source, number)
    except exceptions.NotFound:
        return
    if size_bytes < version.size_bytes:
        raise exceptions.InvalidConfiguration(
            f'size of {size_bytes} bytes is less than the '
            f'{version.size_bytes} of version {version.number} of blob '
            f'"{source}"; a disk can only grow'
        )


def grow(
    repo: 'repository.Repository', clone: api.Version, size_bytes: int
) -> api.Version:
    """:param clone: version 1, whose blob nobody writes to yet

    :raises StaleWriter: somebody does
    """
    catalog = repo.catalog
    commit_id = f'grow:{size_bytes}'
    done = catalog.find_commit(clone.blob_id, commit_id)
    if done is not None:
        return done
    blob = catalog.get(clone.blob_id)
    parent = repo.tree(clone.root, blob.scope)
    with repo.commit(blob, parent, size_bytes=size_bytes) as target:
        root = target.finish()
        return target.publish(
            blob.id,
            epoch=blob.epoch,
            parent=clone.number,
            commit_id=commit_id,
            root=root,
            size_bytes=size_bytes,
            drop_parent=True,
        )
