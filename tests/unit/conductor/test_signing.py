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
"""Answers are believed if a conductor signed them for this very call.

``Liar`` stands on the bus in the conductor's place, as a compute node that
has fallen can; it may ask the real conductor whatever it likes.
"""

import json
import re

import catalog_contract
import oslo_messaging
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import x25519
from oslo_messaging.rpc import dispatcher

from lazyblob import exceptions
from lazyblob.catalog import api
from lazyblob.catalog import sql
from nova_lazyimage.conductor import manager
from nova_lazyimage.conductor import plain
from nova_lazyimage.conductor import rpcapi
from nova_lazyimage.conductor import signing

EVIL = 'ee' * 32


@pytest.fixture
def new_signer(tmp_path):
    """Makes conductors' keys."""
    made = []

    def make():
        path = tmp_path / f'key-{len(made)}'
        signing.make_key(path)
        made.append(signing.Signer.load(str(path)))
        return made[-1]

    return make


@pytest.fixture
def signer(new_signer):
    return new_signer()


@pytest.fixture
def answer_by(conf):
    """Has an endpoint answer on the conductor's topic."""
    transport = oslo_messaging.get_rpc_transport(conf)
    servers = []

    def start(endpoint):
        servers.append(
            oslo_messaging.get_rpc_server(
                transport,
                oslo_messaging.Target(
                    exchange=rpcapi.EXCHANGE, topic=rpcapi.TOPIC, server='host'
                ),
                [endpoint],
                executor='threading',
                access_policy=dispatcher.DefaultRPCAccessPolicy,
            )
        )
        servers[-1].start()

    start.transport = transport
    yield start
    for server in servers:
        server.stop()
        server.wait()
    transport.cleanup()


@pytest.fixture
def ask(conf, answer_by):
    """Makes catalogs that believe the signers which they are given."""

    def make(*signers):
        catalog = rpcapi.RpcCatalog(
            conf=conf,
            timeout_seconds=20,
            public_keys=[signer.public_key for signer in signers],
        )
        # One in-memory exchange: the client must share the server's.
        catalog._transport = answer_by.transport
        return catalog

    return make


@pytest.fixture
def conductor(database, signer):
    return manager.Manager(sql.SqlCatalog(database), signer)


class TestSigned(catalog_contract.CatalogContract):
    """The contract, an answer's every error included."""

    @pytest.fixture
    def open_catalog(self, answer_by, ask, conductor, signer):
        answer_by(conductor)
        return lambda: ask(signer)


class Liar:
    """Answers for the conductor.

    :param lie: the answer to (operation, arguments, nonce)
    """

    target = manager.Manager.target

    def __init__(self, lie):
        self._lie = lie

    def catalog(self, context, operation, arguments, nonce=None):
        return self._lie(operation, arguments, nonce)


@pytest.fixture
def images(database):
    """Two images: one that is asked for, one that is not."""
    catalog = sql.SqlCatalog(database)
    catalog.begin_session('test', 'session')
    for name, root in (('asked-for', 'aa' * 32), ('another', EVIL)):
        catalog.create(
            name,
            kind=api.Kind.IMAGE,
            project_id='project',
            chunk_size_bytes=524288,
        )
        catalog.publish(
            name,
            epoch=1,
            parent=0,
            commit_id=name,
            root=root,
            size_bytes=4096,
            session_id='session',
        )
    catalog.close()


def altered(answer):
    """The same with another root in it."""
    text = json.dumps(answer).replace('aa' * 32, EVIL)
    assert EVIL in text
    return json.loads(text)


def forged(operation, arguments, nonce):
    """What a conductor without a key would say."""
    version = api.Version('asked-for', 1, EVIL, 4096, 'project', 'c', '2026')
    return plain.success(version)


class TestLies:
    def refused(self, answer_by, ask, signer, lie, why):
        answer_by(Liar(lie))
        catalog = ask(signer)
        with pytest.raises(exceptions.CatalogUnavailable, match=why):
            catalog.version('asked-for', 1)

    def test_the_truth_is_believed(
        self, answer_by, ask, signer, conductor, images
    ):
        answer_by(Liar(lambda *call: conductor.catalog({}, *call)))
        assert ask(signer).version('asked-for', 1).root == 'aa' * 32

    def test_without_keys_a_lie_is_believed_as_well(self, answer_by, ask):
        """What the keys are for."""
        answer_by(Liar(forged))
        assert ask().version('asked-for', 1).root == EVIL

    def test_an_unsigned_answer_is_refused(self, answer_by, ask, signer):
        self.refused(answer_by, ask, signer, forged, 'is not signed')

    def test_so_is_an_unsigned_error(self, answer_by, ask, signer):
        """A publish that landed must not be told to have not."""

        def lie(*call):
            return plain.failure(exceptions.NotFound('no such commit'))

        self.refused(answer_by, ask, signer, lie, 'is not signed')

    def test_an_answer_signed_by_somebody_else_is_refused(
        self, answer_by, ask, signer, new_signer
    ):
        other = new_signer()

        def lie(operation, arguments, nonce):
            answer = forged(operation, arguments, nonce)
            return other.sign(operation, arguments, nonce, answer)

        key = re.escape(other.public_key)
        self.refused(answer_by, ask, signer, lie, f'by no key .*"{key}"')

    def test_an_altered_answer_is_refused(
        self, answer_by, ask, signer, conductor, images
    ):
        self.refused(
            answer_by,
            ask,
            signer,
            lambda *call: altered(conductor.catalog({}, *call)),
            'by no key',
        )

    def test_an_old_answer_to_a_new_nonce_is_refused(
        self, answer_by, ask, signer, conductor, images
    ):
        answers = []

        def lie(*call):
            answers.append(conductor.catalog({}, *call))
            return answers[0]

        answer_by(Liar(lie))
        catalog = ask(signer)
        assert catalog.version('asked-for', 1).number == 1
        with pytest.raises(
            exceptions.CatalogUnavailable, match='another question'
        ):
            catalog.version('asked-for', 1)

    def test_the_answer_to_other_arguments_is_refused(
        self, answer_by, ask, signer, conductor, images
    ):
        """The liar asks on its own with the nonce that it has read."""

        def lie(operation, arguments, nonce):
            arguments = {**arguments, 'blob_id': 'another'}
            return conductor.catalog({}, operation, arguments, nonce)

        self.refused(answer_by, ask, signer, lie, 'another question')

    def test_the_answer_to_another_operation_is_refused(
        self, answer_by, ask, signer, conductor, images
    ):
        def lie(operation, arguments, nonce):
            return conductor.catalog({}, 'get', arguments, nonce)

        answer_by(Liar(lie))
        with pytest.raises(
            exceptions.CatalogUnavailable, match='another question'
        ):
            ask(signer).versions('asked-for')

    @pytest.mark.parametrize(
        'nonsense',
        [
            None,
            'text',
            [],
            {'signed': 5, 'signature': 'AAAA'},
            {'signed': 'text', 'signature': None},
            {'signed': 'text', 'signature': 'no base64', 'key': 7},
            {'signed': 'text', 'signature': 'AAAA'},
            {'signed': 'text', 'signature': '\u00e4'},
        ],
    )
    def test_nonsense_is_refused(self, answer_by, ask, signer, nonsense):
        self.refused(
            answer_by, ask, signer, lambda *_: nonsense, 'signed; set|no key'
        )


class TestUpgrade:
    class Old:
        """A conductor of interface 1.0."""

        target = oslo_messaging.Target(version='1.0')

        def __init__(self, conductor):
            self._conductor = conductor

        def catalog(self, context, operation, arguments):
            return self._conductor.catalog(context, operation, arguments)

    def test_an_old_conductor_answers_an_agent_without_keys(
        self, answer_by, ask, conductor, images
    ):
        answer_by(self.Old(conductor))
        assert ask().version('asked-for', 1).root == 'aa' * 32

    def test_an_agent_with_keys_says_that_it_is_too_old(
        self, answer_by, ask, signer, conductor, images
    ):
        answer_by(self.Old(conductor))
        with pytest.raises(
            exceptions.CatalogUnavailable, match=r'older than interface 1\.2'
        ):
            ask(signer).version('asked-for', 1)

    def test_an_old_agent_is_answered_as_before(
        self, answer_by, conductor, images
    ):
        answer_by(conductor)
        client = oslo_messaging.get_rpc_client(
            answer_by.transport,
            oslo_messaging.Target(
                exchange=rpcapi.EXCHANGE, topic=rpcapi.TOPIC, version='1.0'
            ),
            timeout=20,
            version_cap='1.0',
        )
        answer = client.call(
            {},
            'catalog',
            operation='version',
            arguments={'blob_id': 'asked-for', 'number': 1},
        )
        assert plain.answer(answer).root == 'aa' * 32

    def test_a_conductor_without_a_key_is_named_by_an_agent_with_keys(
        self, answer_by, ask, signer, database
    ):
        answer_by(manager.Manager(sql.SqlCatalog(database)))
        with pytest.raises(
            exceptions.CatalogUnavailable, match=r'\[conductor\] signing_key'
        ):
            ask(signer).list_blobs()

    def test_while_keys_change_old_and_new_are_believed(
        self, answer_by, ask, signer, new_signer, conductor, images
    ):
        answer_by(conductor)
        new = new_signer()
        assert len(ask(new, signer).list_blobs()) == 2
        with pytest.raises(exceptions.CatalogUnavailable, match='by no key'):
            ask(new).list_blobs()


class TestKeys:
    def test_a_new_key_is_its_owners_and_its_public_half_everybodys(
        self, tmp_path
    ):
        public = signing.make_key(tmp_path / 'key')
        assert (tmp_path / 'key').stat().st_mode & 0o777 == 0o600
        assert (tmp_path / 'key.pub').read_text() == f'{public}\n'
        assert signing.Signer.load(str(tmp_path / 'key')).public_key == public

    def test_a_key_is_never_replaced(self, tmp_path):
        signing.make_key(tmp_path / 'key')
        before = (tmp_path / 'key').read_bytes()
        with pytest.raises(FileExistsError):
            signing.make_key(tmp_path / 'key')
        assert (tmp_path / 'key').read_bytes() == before

    def refused(self, path, why):
        with pytest.raises(exceptions.InvalidConfiguration, match=why) as info:
            signing.Signer.load(str(path))
        assert f'[conductor] signing_key "{path}"' in str(info.value)

    def test_a_key_that_is_not_there_is_named(self, tmp_path):
        self.refused(tmp_path / 'none', '--new-signing-key')

    def test_a_key_that_everybody_may_read_is_refused(self, tmp_path):
        signing.make_key(tmp_path / 'key')
        (tmp_path / 'key').chmod(0o644)
        self.refused(tmp_path / 'key', 'mode 0644')

    def test_what_is_no_key_is_refused(self, tmp_path):
        (tmp_path / 'key').write_text('no key')
        (tmp_path / 'key').chmod(0o600)
        self.refused(tmp_path / 'key', 'no private key')

    def test_a_key_of_another_kind_is_refused(self, tmp_path):
        (tmp_path / 'key').write_bytes(
            x25519.X25519PrivateKey.generate().private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        (tmp_path / 'key').chmod(0o600)
        self.refused(tmp_path / 'key', 'no Ed25519 key')

    @pytest.mark.parametrize('key', ['none', 'AAAA', 'no base64', 'A' * 44])
    def test_what_is_no_public_key_is_named(self, conf, key):
        with pytest.raises(exceptions.InvalidConfiguration, match=key):
            rpcapi.RpcCatalog(conf=conf, public_keys=[key])

    def test_a_nonce_that_is_none_gets_no_signature(self, conductor):
        answer = conductor.catalog({}, 'list_blobs', {}, 'n' * 65)
        assert answer == {'value': []}
