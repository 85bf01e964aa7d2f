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
"""What copies would bring, before anything is done.

Names are kept in a temporary database (in ``$TMPDIR``), so that memory does
not grow with them, and an object that several versions share counts once.

Threads: one.
"""

import sqlite3
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING

from lazyblob import copying
from lazyblob import tree as trees

if TYPE_CHECKING:
    from lazyblob import repository

_TABLE = """
CREATE TABLE names (
    digest BLOB PRIMARY KEY,
    is_wanted INTEGER NOT NULL
) WITHOUT ROWID
"""


class Plan:
    """Copies from one repository to another.

    :ivar objects: so many different ones would travel
    """

    def __init__(self, source: 'repository.Repository') -> None:
        self.objects = 0
        self._source = source
        self._before: dict[str, trees.Tree] = {}
        self._folder = tempfile.TemporaryDirectory(prefix='lazyblob-copy')
        self._names = sqlite3.connect(
            f'{self._folder.name}/names', isolation_level=None
        )
        # It is gone with the process: nothing has to be durable.
        self._names.execute('PRAGMA journal_mode=OFF')
        self._names.execute(_TABLE)
        self._names.execute('BEGIN')

    def add(self, copy: copying.Copy) -> int:
        """Count one in: so many objects it adds to those before it."""
        if copy.received() is not None:
            return 0
        before = self.objects
        blob_id = copy.version.blob_id
        for _first, name in copy.names(self._before.get(blob_id)):
            if not self._is_known(name) and self._note(
                name, not copy.is_there(name)
            ):
                self.objects += 1
        # Only the last blob's: its versions come one after the other.
        self._before = {blob_id: copy.tree()}
        return self.objects - before

    def size_bytes(self, progress: Callable[[int], None] | None = None) -> int:
        """What they take, as the source's store tells: it is listed once.

        :param progress: called with the objects listed so far
        """
        total = 0
        for count, (name, stored_bytes) in enumerate(
            self._source.store.list() if self.objects else ()
        ):
            if self._is_known(name, 1):
                total += stored_bytes
            if progress is not None:
                progress(count)
        return total

    def close(self) -> None:
        self._names.close()
        self._folder.cleanup()

    def __enter__(self) -> 'Plan':
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _is_known(self, name: bytes, wanted_min: int = 0) -> bool:
        found = self._names.execute(
            'SELECT 1 FROM names WHERE digest = ? AND is_wanted >= ?',
            (name, wanted_min),
        )
        return found.fetchone() is not None

    def _note(self, name: bytes, is_wanted: bool) -> bool:
        self._names.execute(
            'INSERT INTO names VALUES (?, ?)', (name, int(is_wanted))
        )
        return is_wanted
