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
"""Names of content: keyed BLAKE3, one key for each kind of object.

A digest is always of uncompressed content, keyed with a key that is derived
from the kind (so that a chunk can never pass for a manifest node) and from
the dedupe scope (so that equal content of two projects has two names where
the operator chose so). FORMAT.rst is the definition.
"""

import dataclasses
import functools

import blake3

SIZE_BYTES = 32
CHUNK_CONTEXT = 'lazyimage 2026 chunk v1'
NODE_CONTEXT = 'lazyimage 2026 node v1'
DESCRIPTOR_CONTEXT = 'lazyimage 2026 descriptor v1'

REPOSITORY_SCOPE = 'repository'
PROJECT_SCOPE_PREFIX = 'project:'

Buffer = bytes | bytearray | memoryview


@dataclasses.dataclass(frozen=True)
class Keys:
    """The keys of one dedupe scope."""

    scope: str
    chunk: bytes
    node: bytes
    descriptor: bytes

    @property
    def is_project(self) -> bool:
        return self.scope.startswith(PROJECT_SCOPE_PREFIX)


def project_scope(project_id: str) -> str:
    return f'{PROJECT_SCOPE_PREFIX}{project_id}'


@functools.lru_cache(maxsize=1024)
def keys(scope: str) -> Keys:
    """:param scope: ``repository`` or ``project:<id>``"""

    def derive(context: str) -> bytes:
        hasher = blake3.blake3(scope.encode(), derive_key_context=context)
        return hasher.digest()

    return Keys(
        scope,
        derive(CHUNK_CONTEXT),
        derive(NODE_CONTEXT),
        derive(DESCRIPTOR_CONTEXT),
    )


def of(content: Buffer, key: bytes) -> bytes:
    """The digest of a content; lets go of the GIL while it works."""
    return blake3.blake3(content, key=key).digest()
