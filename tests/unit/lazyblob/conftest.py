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
"""What the tests of the library share."""

import pathlib
import sys

import hypothesis
import pytest

from lazyblob import repository

# The contracts are modules that the functional tests load too.
sys.path.insert(0, str(pathlib.Path(__file__).parent))
pytest.register_assert_rewrite(
    'catalog_contract',
    'database_contract',
    'lazyblob.chunk_store.conformance',
)

# A busy machine is no fault of the code.
hypothesis.settings.register_profile('lazyblob', deadline=None)
hypothesis.settings.load_profile('lazyblob')


@pytest.fixture
def urls(tmp_path):
    return repository.urls_of((tmp_path / 'repository').as_uri())


@pytest.fixture
def repo(urls):
    made = repository.initialise(*urls)
    yield made
    made.close()
