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
"""Options: what is read, and what is said about those that cannot work."""

import glance_store
import pytest
from glance_store import exceptions
from oslo_config import cfg

from glance_store_blob import conf as blob_conf

GOOD = {
    'blob_store_chunk_store': 'file:///srv/chunks',
    'blob_store_catalog': 'sqlite:////srv/catalog.sqlite',
}


@pytest.fixture
def conf():
    conf = cfg.ConfigOpts()
    conf([])
    for group in ('blob1', 'backend_defaults'):
        conf.register_opts(blob_conf.OPTIONS, group=group)
    return conf


def set_all(conf, group='blob1', **values):
    for name, value in values.items():
        conf.set_override(name, value, group=group)


def reason_of(conf, **values):
    set_all(conf, **(GOOD | values))
    with pytest.raises(exceptions.BadStoreConfiguration) as refusal:
        blob_conf.settings(conf, 'blob1')
    return str(refusal.value)


def test_what_is_not_set_has_the_default_that_help_names(conf):
    set_all(conf, **GOOD)
    settings = blob_conf.settings(conf, 'blob1')
    assert settings.threads is None
    assert settings.chunk_size_bytes == 524288
    assert settings.transport_url is None
    assert settings.catalog_timeout_seconds is None
    told = {option.name: option.help for option in blob_conf.OPTIONS}
    assert 'Unless set there are 2 and 4' in told['blob_store_threads']
    assert '524288 (512 KiB) unl' in told['blob_store_chunk_size_bytes']


def test_an_absent_conductor_is_waited_for_ten_seconds_unless_told(conf):
    bus = {
        'blob_store_catalog': 'rpc://',
        'blob_store_transport_url': 'rabbit://user@host/',
    }
    set_all(conf, **(GOOD | bus))
    assert blob_conf.settings(conf, 'blob1').catalog_timeout_seconds == 10
    set_all(conf, blob_store_catalog_timeout_seconds=3)
    assert blob_conf.settings(conf, 'blob1').catalog_timeout_seconds == 3
    told = {option.name: option.help for option in blob_conf.OPTIONS}
    assert '10\nunless set' in told['blob_store_catalog_timeout_seconds']


def test_a_store_wins_over_the_defaults_of_all_stores(conf):
    set_all(conf, **GOOD)
    set_all(conf, 'backend_defaults', blob_store_threads=7)
    assert blob_conf.settings(conf, 'blob1').threads == 7
    set_all(conf, blob_store_threads=2)
    assert blob_conf.settings(conf, 'blob1').threads == 2


def test_glance_store_without_shared_defaults_will_do():
    conf = cfg.ConfigOpts()
    conf([])
    conf.register_opts(blob_conf.OPTIONS, group='blob1')
    set_all(conf, **(GOOD | {'blob_store_threads': 3}))
    assert blob_conf.settings(conf, 'blob1').threads == 3


def test_glance_store_registers_the_options_for_a_store():
    conf = cfg.ConfigOpts()
    conf([])
    conf.register_opt(cfg.DictOpt('enabled_backends'))
    conf.set_override('enabled_backends', {'blob1': 'blob', 'f': 'file'})
    glance_store.register_store_opts(conf)
    assert conf.blob1.blob_store_catalog is None


@pytest.mark.parametrize('name', sorted(GOOD))
@pytest.mark.parametrize('value', [None, ''])
def test_a_missing_url_is_told(conf, name, value):
    reason = reason_of(conf, **{name: value})
    assert f'option "[blob1] {name}" is not set; set it' in reason


@pytest.mark.parametrize('name', sorted(GOOD))
@pytest.mark.parametrize('value', ['/srv', 'srv', 'ftp://srv', 'sqlite'])
def test_a_url_of_no_known_kind_is_told_with_those_that_are(conf, name, value):
    reason = reason_of(conf, **{name: value})
    assert f'"[blob1] {name}" is "{value}"' in reason
    assert 'begin it with one of: ' in reason
    assert 'file://' in reason or 'sqlite://' in reason


def test_the_conductor_needs_a_message_bus(conf):
    reason = reason_of(conf, blob_store_catalog='rpc://')
    assert '"blob_store_transport_url" is not set; set it to' in reason


def test_a_database_needs_no_message_bus(conf):
    reason = reason_of(
        conf,
        blob_store_transport_url='rabbit://user:secret@host/',
        blob_store_catalog='mysql+pymysql://user:secret@host/lazyimage',
    )
    assert 'remove one of them' in reason
    assert 'secret' not in reason


def test_public_keys_are_for_a_conductor(conf):
    keys = {'blob_store_conductor_public_keys': ['one', 'two']}
    bus = {
        'blob_store_catalog': 'rpc://',
        'blob_store_transport_url': 'rabbit://user@host/',
    }
    set_all(conf, **(GOOD | bus | keys))
    assert blob_conf.settings(conf, 'blob1').public_keys == ('one', 'two')
    set_all(conf, blob_store_transport_url=None)
    reason = reason_of(conf, blob_store_transport_url=None, **keys)
    assert '"blob_store_conductor_public_keys" is "one,two"' in (
        reason.replace('[blob1] ', '')
    )
    assert 'remove one of them' in reason


@pytest.mark.parametrize(
    'name, value',
    [
        ('blob_store_chunk_size_bytes', '131072'),
        ('blob_store_chunk_size_bytes', '262145'),
        ('blob_store_chunk_size_bytes', '786432'),
        ('blob_store_chunk_size_bytes', '8388608'),
        ('blob_store_chunk_size_bytes', '-524288'),
        ('blob_store_catalog_timeout_seconds', '0'),
        ('blob_store_catalog_timeout_seconds', '601'),
        ('blob_store_threads', '0'),
        ('blob_store_threads', '65'),
        ('blob_store_threads', 'many'),
    ],
)
def test_a_number_that_cannot_work_is_told(tmp_path, name, value):
    file = tmp_path / 'glance-api.conf'
    lines = [f'{key} = {each}' for key, each in (GOOD | {name: value}).items()]
    file.write_text('\n'.join(['[blob1]', *lines]))
    conf = cfg.ConfigOpts()
    conf(['--config-file', str(file)])
    conf.register_opts(blob_conf.OPTIONS, group='blob1')
    with pytest.raises(exceptions.BadStoreConfiguration) as refusal:
        blob_conf.settings(conf, 'blob1')
    assert name in str(refusal.value)
    assert value in str(refusal.value)


def test_the_legacy_single_store_is_refused(conf):
    with pytest.raises(exceptions.BadStoreConfiguration, match='<store id>'):
        blob_conf.settings(conf, None)


def test_settings_are_shown_without_secrets(conf):
    set_all(
        conf,
        blob_store_chunk_store='file:///srv/chunks',
        blob_store_catalog='mysql+pymysql://user:secret@host/lazyimage',
        blob_store_s3_access_key_id='secret',
        blob_store_s3_secret_access_key='secret',
    )
    assert 'secret' not in repr(blob_conf.settings(conf, 'blob1'))


@pytest.mark.parametrize('option', blob_conf.OPTIONS, ids=lambda o: o.name)
def test_options_may_hold_secrets_only_if_they_are_marked(option):
    assert option.secret == (
        option.name
        in (
            'blob_store_catalog',
            'blob_store_s3_access_key_id',
            'blob_store_s3_secret_access_key',
            'blob_store_transport_url',
        )
    )
