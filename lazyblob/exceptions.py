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
"""What can go wrong in a repository: one class for each way to handle it.

The message says what happened, with the option or object in double quotes,
and the remedy. Doors translate these at their border and nowhere else.
"""


class LazyBlobError(Exception):
    """Any failure of this library."""


class InvalidConfiguration(LazyBlobError):
    """An option or argument cannot work; the message says which and why."""


class NotFound(LazyBlobError):
    """No such blob, version, chunk or repository."""


class BadLocation(LazyBlobError):
    """A location URL is malformed, of another repository, or forged."""


class Forbidden(LazyBlobError):
    """It belongs to somebody else."""


class Conflict(LazyBlobError):
    """What is there already, or what is in use, stands against it."""


class StaleWriter(Conflict):
    """A successor writes to this blob now, or its head has moved on."""


class SizeMismatch(LazyBlobError):
    """A stream ended before or after the size that was told for it."""


class CatalogUnavailable(LazyBlobError):
    """The catalog did not answer; trying again later may succeed."""


class StoreError(LazyBlobError):
    """The chunk store refused or failed."""


class TemporaryStoreError(StoreError):
    """The store may answer later."""


class ChunkCorrupt(StoreError):
    """What is stored is not what its digest names."""


class StoreFull(StoreError):
    """The store has no room."""


class StoreDenied(StoreError):
    """The store refuses this writer."""
