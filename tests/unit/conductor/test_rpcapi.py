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
"""The catalog over RPC keeps every promise of the catalog."""

import catalog_contract
import oslo_messaging
import pytest

from lazyblob import exceptions
from lazyblob.catalog import api
from nova_lazyimage.conductor import manager
from nova_lazyimage.conductor import plain
from nova_lazyimage.conductor import rpcapi
from nova_lazyimage.conductor import service


class TestRpc(catalog_contract.CatalogContract):
    """The contract."""


VERSION = api.Version('blob', 3, 'ab' * 32, 1 << 40, 'p', 'c', '2026')
BLOB = api.Blob(
    id='blob',
    name='',
    kind=api.Kind.DISK,
    state=api.State.PROVISIONAL,
    project_id='p',
    chunk_size_bytes=524288,
    scope='repository',
    epoch=2,
    head=3,
    origin='',
    origin_version=0,
    created_at='2026',
)


@pytest.mark.parametrize(
    'value',
    [
        None,
        7,
        'text',
        [VERSION, VERSION],
        BLOB,
        api.NewImage('i', 'p', 'name'),
        api.RepositoryInfo('u', 1, 'repository', 'file:///x'),
        {'image': api.NewImage('i', 'p'), 'number': None},
    ],
)
def test_a_value_arrives_as_it_was_sent(value):
    arrived = plain.decode(plain.encode(value))
    assert arrived == value
    assert type(arrived) is type(value)


def test_kinds_and_states_arrive_as_what_they_are():
    arrived = plain.decode(plain.encode(BLOB))
    assert arrived.kind is api.Kind.DISK
    assert arrived.state is api.State.PROVISIONAL


@pytest.mark.parametrize(
    'cls',
    [
        cls
        for cls in vars(exceptions).values()
        if isinstance(cls, type) and issubclass(cls, exceptions.LazyBlobError)
    ],
)
def test_an_error_is_raised_as_the_class_that_it_was(cls):
    with pytest.raises(cls, match=r'^why it failed$') as caught:
        plain.answer(plain.failure(cls('why it failed')))
    assert type(caught.value) is cls


def test_an_error_of_a_newer_conductor_is_an_error_all_the_same():
    with pytest.raises(exceptions.LazyBlobError, match='new'):
        plain.answer({'error': 'OfTheFuture', 'message': 'new'})


def test_only_records_of_the_catalog_are_made_from_what_arrives():
    with pytest.raises(ValueError, match='unknown record'):
        plain.decode({'_': 'Popen', 'args': 'true'})


def test_a_field_of_a_newer_conductor_is_left_out():
    data = {**plain.encode(VERSION), 'added_later': 1}
    assert plain.decode(data) == VERSION


@pytest.mark.parametrize(
    ('operation', 'arguments'),
    [
        ('close', {}),
        ('_repository', {}),
        ('__init__', {}),
        ('get', {'blob_id': {'_': 'Popen'}}),
        (
            'create',
            {
                'blob_id': 'b',
                'kind': 'none',
                'project_id': 'p',
                'chunk_size_bytes': 4096,
            },
        ),
    ],
)
def test_what_is_no_operation_of_the_catalog_is_refused(
    open_catalog, operation, arguments
):
    answer = manager.Manager(open_catalog()).catalog({}, operation, arguments)
    assert answer['error'] == 'InvalidConfiguration'


@pytest.mark.expect_logs('"get" failed')
def test_a_fault_of_the_conductor_tells_the_caller_no_particulars():
    class Broken:
        def get(self, blob_id):
            raise RuntimeError('password=secret')

    answer = manager.Manager(Broken()).catalog({}, 'get', {'blob_id': 'b'})
    assert answer['error'] == 'CatalogUnavailable'
    assert 'secret' not in answer['message']


def test_no_conductor_is_a_catalog_that_is_away(conf):
    catalog = rpcapi.RpcCatalog(conf=conf, timeout_seconds=1)
    with pytest.raises(exceptions.CatalogUnavailable, match='did not answer'):
        catalog.get('image')
    catalog.close()


def test_a_transport_that_cannot_work_is_named(conf):
    catalog = rpcapi.RpcCatalog(
        conf=conf, transport_url='nonsense://host', timeout_seconds=1
    )
    with pytest.raises(exceptions.InvalidConfiguration, match='transport_url'):
        catalog.get('image')


def test_a_url_with_a_host_is_refused():
    with pytest.raises(exceptions.InvalidConfiguration, match='transport_url'):
        rpcapi.RpcCatalog('rpc://somewhere')


@pytest.mark.parametrize('url', ['', 'rpc://'])
def test_a_conductor_needs_the_database_itself(url):
    with pytest.raises(exceptions.InvalidConfiguration, match='catalog'):
        service.open_catalog(url)


def test_the_interface_has_a_version_and_a_topic():
    target = manager.Manager.target
    assert isinstance(target, oslo_messaging.Target)
    assert (rpcapi.TOPIC, target.version) == ('lazyimage-conductor', '1.3')


def test_a_conductor_of_the_release_before_serves_what_it_knows(
    conf, database
):
    """Of what it does not know it says that it has to be upgraded."""

    class Before(manager.Manager):
        target = oslo_messaging.Target(version='1.0')

        def _do(self, operation, arguments):
            answer = super()._do(operation, arguments)
            return None if operation == 'begin_session' else answer

    transport = oslo_messaging.get_rpc_transport(conf)
    server = oslo_messaging.get_rpc_server(
        transport,
        oslo_messaging.Target(
            exchange=rpcapi.EXCHANGE, topic=rpcapi.TOPIC, server='before'
        ),
        [Before(service.open_catalog(database))],
        executor='threading',
    )
    server.start()
    catalog = rpcapi.RpcCatalog(conf=conf, timeout_seconds=20)
    catalog._transport = transport
    try:
        assert catalog.begin_session('owner', 'session') == []
        assert [s.id for s in catalog.sessions()] == ['session']
        with pytest.raises(exceptions.InvalidConfiguration, match='upgrade'):
            catalog.report_bad(['ab' * 32], 'host')
        with pytest.raises(exceptions.InvalidConfiguration, match=r'1\.3'):
            catalog_contract.publish(catalog, 1, ends_session=True)
        with pytest.raises(exceptions.NotFound):
            catalog_contract.publish(catalog, 1)
    finally:
        server.stop()
        server.wait()
