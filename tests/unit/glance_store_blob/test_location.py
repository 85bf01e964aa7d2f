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
"""The one spelling of a location."""

import pytest
from glance_store import exceptions
from oslo_config import cfg

from glance_store_blob import location

UUID = '0c3a5f1e-6a75-4b5e-9a8e-2d9cdbd3b0aa'
BLOB = '7f5c19b5-52f4-44e2-8b2f-3f3c2ab40a01'
MAC = '5e' * 32
URL = f'blob://{UUID}/{BLOB}/1?mac={MAC}'


def parse(url):
    parsed = location.StoreLocation({}, cfg.ConfigOpts(), backend_group='b')
    parsed.parse_uri(url)
    return parsed


def test_a_location_is_taken_apart_and_put_together_again():
    parsed = parse(URL)
    assert parsed.repository == UUID
    assert parsed.blob_id == BLOB
    assert parsed.version == 1
    assert parsed.mac == MAC
    assert parsed.get_uri() == URL


def test_a_location_can_be_made_of_its_parts():
    parts = {'repository': UUID, 'blob_id': BLOB, 'version': 1, 'mac': MAC}
    made = location.StoreLocation(parts, cfg.ConfigOpts())
    assert made.get_uri() == URL


@pytest.mark.parametrize(
    'url',
    [
        '',
        'blob',
        'blob://',
        f'file://{UUID}/{BLOB}/1?mac={MAC}',
        f'BLOB://{UUID}/{BLOB}/1?mac={MAC}',
        f' {URL}',
        f'{URL} ',
        f'{URL}\n',
        f'{URL}0',
        f'{URL}&mac={MAC}',
        f'{URL}#fragment',
        f'blob://{UUID}/{BLOB}/1',
        f'blob://{UUID}/{BLOB}/1?mac=',
        f'blob://{UUID}/{BLOB}/1?mac={MAC[1:]}',
        f'blob://{UUID}/{BLOB}/1?mac={MAC.upper()}',
        f'blob://{UUID}/{BLOB}/1?MAC={MAC}',
        f'blob://{UUID}/{BLOB}/1?x=1&mac={MAC}',
        f'blob://{UUID}/{BLOB}/0?mac={MAC}',
        f'blob://{UUID}/{BLOB}/01?mac={MAC}',
        f'blob://{UUID}/{BLOB}/-1?mac={MAC}',
        f'blob://{UUID}/{BLOB}/{"9" * 19}?mac={MAC}',
        f'blob://{UUID}/{BLOB}/\N{ARABIC-INDIC DIGIT ONE}?mac={MAC}',
        f'blob://{UUID}/{BLOB}?mac={MAC}',
        f'blob://{UUID}//1?mac={MAC}',
        f'blob://{UUID}/../1?mac={MAC}',
        f'blob://{UUID}/{"b" * 256}/1?mac={MAC}',
        f'blob://{UUID}/{BLOB}/1/2?mac={MAC}',
        f'blob://{UUID}/%2e%2e/1?mac={MAC}',
        f'blob://{UUID.upper()}/{BLOB}/1?mac={MAC}',
        f'blob://{"-" * 36}/{BLOB}/1?mac={MAC}',
        f'blob://user:password@{UUID}/{BLOB}/1?mac={MAC}',
        f'blob://{UUID}:80/{BLOB}/1?mac={MAC}',
        f'blob://{UUID}/\0/1?mac={MAC}',
    ],
)
def test_another_spelling_is_refused(url):
    with pytest.raises(exceptions.BadStoreUri):
        parse(url)


def test_a_refusal_does_not_repeat_the_mac():
    with pytest.raises(exceptions.BadStoreUri) as refusal:
        parse(f'{URL}0')
    assert MAC not in str(refusal.value)
