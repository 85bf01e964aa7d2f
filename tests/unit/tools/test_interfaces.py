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
"""The page of the parts' interfaces names every option and every route."""

import pathlib
import re

from nova_lazyimage.agent import routes

TREE = pathlib.Path(__file__).parents[3]
INTERFACES = TREE / 'doc/source/contributor/interfaces.rst'
OPTIONS = [
    *(TREE / 'nova_lazyimage/conf').glob('*.py'),
    TREE / 'glance_store_blob/conf.py',
]


def test_every_option_is_there():
    names = [
        name
        for path in OPTIONS
        for name in re.findall(r"cfg\.\w+Opt\(\s*'(\w+)'", path.read_text())
    ]
    assert len(names) > 30, 'hardly any was found: this run proves nothing'
    page = INTERFACES.read_text()
    assert [
        name for name in names if not re.search(rf'\b{name}\b', page)
    ] == []


def test_every_route_is_there():
    page = INTERFACES.read_text()
    # The table has I and D where a path names server and disk, and some
    # verbs share a line.
    missing = [
        path
        for _, path, _ in routes.Routes(None).table()
        if path.rpartition('/')[2].strip('([^/]+)') not in page
    ]
    assert missing == []
