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
"""The contract of chunk stores, on a real object gateway."""

import gateway as gateways
import pytest

from lazyblob.chunk_store import conformance
from lazyblob.chunk_store import objects


@pytest.fixture(scope='module')
def gateway(tmp_path_factory):
    with gateways.Gateway(tmp_path_factory.mktemp('ceph')) as found:
        yield found


@pytest.fixture(scope='module')
def proxy(gateway):
    with gateways.proxy(gateway) as found:
        yield found


@pytest.fixture
def site(gateway, proxy):
    return gateways.S3Site(gateway, proxy)


@pytest.mark.expect_logs('Repeating what failed')
class TestBucket(conformance.RemoteContract):
    """The contract."""


def test_what_is_there_is_not_sent_over_it(site):
    import obstore

    site.open().put(*conformance.an_object())
    key = objects.key(conformance.NAME)
    before = obstore.head(site._raw, key)['last_modified']
    site.open().put(*conformance.an_object())
    assert obstore.head(site._raw, key)['last_modified'] == before
