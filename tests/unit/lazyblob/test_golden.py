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
"""Fixtures of every format that was released are read for ever.

``golden/digests.txt`` names them; the engine's tests read the same files.
"""

import pathlib

import pytest

from lazyblob import chunk
from lazyblob import digest
from lazyblob import exceptions
from lazyblob import manifest

GOLDEN = pathlib.Path(__file__).with_name('golden')
LINES = [
    line.split()
    for line in (GOLDEN / 'digests.txt').read_text().splitlines()
    if not line.startswith('#')
]
REFUSED = sorted((GOLDEN / 'refused').glob('*.object'))


def key_of(kind, scope):
    keys = digest.keys(scope)
    return (keys.chunk, keys.node, keys.descriptor)[kind]


@pytest.mark.parametrize(
    ('name', 'kind', 'scope', 'hexadecimal', 'length'),
    LINES,
    ids=[line[0] for line in LINES],
)
def test_an_object_reads_as_when_it_was_written(
    name, kind, scope, hexadecimal, length
):
    kind = chunk.Kind(int(kind))
    content = chunk.unpack(
        (GOLDEN / f'{name}.object').read_bytes(),
        bytes.fromhex(hexadecimal),
        key_of(kind, scope),
        kind,
        1 << 16,
    )
    assert content == (GOLDEN / f'{name}.content').read_bytes()
    assert len(content) == int(length)


def test_the_golden_manifest_says_where_its_chunks_are():
    digests = {name: bytes.fromhex(hexa) for name, _, _, hexa, _ in LINES}
    content = (GOLDEN / 'descriptor.content').read_bytes()
    descriptor = manifest.Descriptor.decode(content)
    assert descriptor.size_bytes == 301 * 4096 - 100
    assert descriptor.depth == 2
    assert descriptor.tree == digests['node-root']
    root = manifest.decode_node(
        (GOLDEN / 'node-root.content').read_bytes(), 1, 2
    )
    assert root[:64] == digests['node-leaf-first'] + digests['node-leaf-last']
    leaf = manifest.decode_node(
        (GOLDEN / 'node-leaf-first.content').read_bytes(), 0, 256
    )
    assert leaf[:32] == digests['chunk-stored']
    assert leaf[5 * 32 : 6 * 32] == digests['chunk-zstd']


@pytest.mark.parametrize('path', REFUSED, ids=[p.stem for p in REFUSED])
def test_an_object_that_breaks_a_rule_is_refused(path):
    with pytest.raises(exceptions.ChunkCorrupt):
        chunk.decode(path.read_bytes(), chunk.Kind.CHUNK, 4096)


def test_there_are_golden_objects():
    assert len(LINES) >= 8
    assert len(REFUSED) >= 19
