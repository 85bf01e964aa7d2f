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
"""The store driver on a real repository, and the suites glance_store ships.

``TestStoreCapabilitiesChecking``, ``MultiStoreBaseTest`` and
``BaseFunctionalTests`` run unchanged; the last one only gets a store that is
one of many, since ours is nothing else.
"""

import hashlib
import io
import threading
import types
import uuid

import glance_store
import pytest
from glance_store import exceptions
from glance_store import location as glance_location
from glance_store.tests import base
from glance_store.tests.functional import base as functional_base
from glance_store.tests.unit import test_store_capabilities
from oslo_config import cfg

from glance_store_blob import driver
from lazyblob.catalog import api

CHUNK = 512 * 1024
DEMO = types.SimpleNamespace(project_id='demo', is_admin=False)
OTHER = types.SimpleNamespace(project_id='other', is_admin=False)
ADMIN = types.SimpleNamespace(project_id='admin', is_admin=True)


@pytest.fixture
def place(new_repository):
    return new_repository()


@pytest.fixture
def new_store(monkeypatch):
    """``new_store(options, store id)``: configured, as glance-api does it."""
    monkeypatch.setattr(glance_location, 'SCHEME_TO_CLS_BACKEND_MAP', {})

    def make(options, store_id='blob1', **more):
        conf = cfg.ConfigOpts()
        conf([])
        conf.register_opt(cfg.DictOpt('enabled_backends'))
        conf.set_override('enabled_backends', {store_id: 'blob'})
        store = driver.Store(conf, backend=store_id)
        for name, value in (options | more).items():
            conf.set_override(name, value, group=store_id)
        store.configure(re_raise_bsc=True)
        return store

    return make


@pytest.fixture
def store(new_store, place):
    return new_store(place.options)


def locate(url):
    return glance_location.Location(
        'blob', driver.StoreLocation, cfg.ConfigOpts(), uri=url
    )


def add(store, data, size_bytes=None, image_id=None, context=DEMO, **more):
    file = io.BytesIO(data) if isinstance(data, bytes) else data
    return store.add(
        image_id or str(uuid.uuid4()),
        file,
        len(data) if size_bytes is None else size_bytes,
        'sha512',
        context=context,
        **more,
    )


def read(store, url, **kwargs):
    pieces, size_bytes = store.get(locate(url), **kwargs)
    return b''.join(pieces), size_bytes


@pytest.fixture
def data(rng):
    """Three chunks and a bit, the second one a hole."""
    return rng.randbytes(CHUNK) + bytes(CHUNK) + rng.randbytes(CHUNK + 12_345)


@pytest.fixture
def url(store, data):
    return add(store, data)[0]


def test_an_image_comes_back_as_it_was_added(store, place, data):
    image_id = str(uuid.uuid4())
    url, size_bytes, md5, multihash, metadata = add(
        store, data, image_id=image_id
    )
    assert size_bytes == len(data)
    assert md5 == hashlib.md5(data).hexdigest()
    assert multihash == hashlib.sha512(data).hexdigest()
    assert metadata == {'store': 'blob1'}
    assert url.startswith(f'{store.url_prefix}{image_id}/1?mac=')
    assert read(store, url) == (data, len(data))
    assert store.get_size(locate(url)) == len(data)
    blob = place.repository.catalog.get(image_id)
    assert (blob.project_id, blob.kind) == ('demo', api.Kind.IMAGE)
    assert blob.state is api.State.ACTIVE


@pytest.mark.parametrize('size_bytes', [0, 1, CHUNK - 1, CHUNK, CHUNK + 1])
@pytest.mark.parametrize('is_size_known', [True, False])
def test_any_size_will_do_known_or_not(store, rng, size_bytes, is_size_known):
    data = rng.randbytes(size_bytes)
    url, stored_bytes, *_ = add(store, data, None if is_size_known else 0)
    assert stored_bytes == size_bytes
    assert read(store, url) == (data, size_bytes)


def test_any_iterable_of_bytes_will_do(store):
    parts = [b'a' * 700_000, b'', b'b', b'c' * 400_000]
    url, size_bytes, *_ = add(store, iter(parts), 0)
    assert read(store, url) == (b''.join(parts), size_bytes)


def test_the_caller_of_old_gets_four_values(store):
    answer = store.add(str(uuid.uuid4()), io.BytesIO(b'1234'), 4)
    assert len(answer) == 4
    assert answer[2] == hashlib.md5(b'1234').hexdigest()


@pytest.mark.parametrize(
    'offset, length',
    [
        (0, 1),
        (0, CHUNK),
        (1, CHUNK),
        (CHUNK - 1, 2),
        (CHUNK, CHUNK),
        (CHUNK + 5, 2 * CHUNK),
        (3 * CHUNK, 12_345),
        (3 * CHUNK + 12_344, 1),
    ],
)
def test_a_range_is_its_bytes_and_its_length(store, url, data, offset, length):
    assert read(store, url, offset=offset, chunk_size=length) == (
        data[offset : offset + length],
        length,
    )


def test_a_range_without_a_length_goes_to_the_end(store, url, data):
    assert read(store, url, offset=CHUNK)[0] == data[CHUNK:]


def test_holes_are_not_stored_and_share_one_buffer(store, place):
    url = add(store, bytes(16 * CHUNK))[0]
    pieces, _ = store.get(locate(url))
    assert len({id(piece) for piece in pieces}) == 1
    # What is there is the descriptor alone.
    assert len(list(place.repository.store.list())) == 1


def test_a_download_that_is_given_up_ends_its_threads(store, url):
    pieces, _ = store.get(locate(url))
    next(pieces)
    pieces.close()
    assert not [
        thread
        for thread in threading.enumerate()
        if thread.name.startswith('read-ahead')
    ]


def test_the_verifier_gets_every_byte(store, data):
    class Verifier:
        seen = b''

        def update(self, data):
            self.seen += data

    verifier = Verifier()
    add(store, data, verifier=verifier)
    assert verifier.seen == data


def test_many_threads_share_one_store(store, rng):
    images = [rng.randbytes(CHUNK + 7 * number) for number in range(8)]
    failures = []

    def round_trip(data):
        try:
            url = add(store, data)[0]
            assert read(store, url)[0] == data
            store.delete(locate(url), context=DEMO)
        except BaseException as error:
            failures.append(error)

    threads = [
        threading.Thread(target=round_trip, args=(data,)) for data in images
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_an_image_that_is_there_is_a_duplicate(store, place, data):
    image_id = str(uuid.uuid4())
    url = add(store, data, image_id=image_id)[0]
    unread = io.BytesIO(data)
    with pytest.raises(exceptions.Duplicate, match=image_id):
        add(store, unread, 0, image_id)
    assert unread.tell() == 0
    assert read(store, url)[0] == data
    assert place.rows()['blobs'] == [image_id]


@pytest.mark.parametrize('announced', [1, 2 * CHUNK, 10**9])
def test_a_size_that_lies_is_invalid_and_leaves_nothing(
    store, place, data, announced
):
    with pytest.raises(exceptions.Invalid):
        add(store, data, announced)
    assert place.is_empty()


@pytest.mark.parametrize(
    'error', [OSError(28, 'no space'), KeyError('x'), KeyboardInterrupt()]
)
def test_what_the_reader_raises_goes_up_and_leaves_nothing(
    store, place, data, error
):
    def reader():
        yield data
        raise error

    image_id = str(uuid.uuid4())
    with pytest.raises(type(error)) as raised:
        add(store, reader(), 0, image_id)
    assert raised.value is error
    assert place.is_empty()
    url = add(store, data, image_id=image_id)[0]
    assert read(store, url)[0] == data


def test_what_the_verifier_raises_goes_up_and_leaves_nothing(store, place):
    class Refusing:
        def update(self, data):
            raise ValueError('bad signature')

    with pytest.raises(ValueError, match='bad signature'):
        add(store, b'data', verifier=Refusing())
    assert place.is_empty()


def test_an_upload_whose_location_cannot_be_had_leaves_nothing(
    store, place, data, monkeypatch
):
    catalog = store._repository().catalog
    image_id = str(uuid.uuid4())
    with monkeypatch.context() as patch:
        patch.setattr(catalog, 'mint_location', lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            add(store, data, image_id=image_id)
    assert place.is_empty()
    assert read(store, add(store, data, image_id=image_id)[0])[0] == data


def test_deleting_removes_the_image_and_says_so_the_second_time(
    store, place, url
):
    store.delete(locate(url), context=DEMO)
    assert place.is_empty()
    for operation in (store.get, store.get_size, store.delete):
        with pytest.raises(exceptions.NotFound):
            operation(locate(url))


def test_an_image_added_again_is_not_reached_by_its_old_location(store, rng):
    image_id = str(uuid.uuid4())
    old = add(store, b'old', image_id=image_id)[0]
    store.delete(locate(old), context=DEMO)
    new = add(store, b'new', image_id=image_id)[0]
    assert read(store, new)[0] == b'new'
    for operation in (store.get, store.get_size, store.delete):
        with pytest.raises(exceptions.NotFound):
            operation(locate(old))
    assert read(store, new)[0] == b'new'


@pytest.mark.parametrize('context', [OTHER, None])
def test_another_projects_image_is_not_deleted(store, url, data, context):
    with pytest.raises(exceptions.Forbidden):
        store.delete(locate(url), context=context)
    assert read(store, url)[0] == data


def test_an_administrator_deletes_any_image(store, place, url):
    store.delete(locate(url), context=ADMIN)
    assert place.is_empty()


def test_the_disk_of_a_server_is_not_deleted_as_an_image(store, place, data):
    catalog = place.repository.catalog
    image = add(store, data, image_id='an-image', context=ADMIN)[0]
    catalog.clone(
        'an-image', None, blob_id='a-disk', kind=api.Kind.DISK, project_id='x'
    )
    disk = catalog.mint_location('a-disk', 1)
    with pytest.raises(exceptions.Forbidden, match='disk of a server'):
        store.delete(locate(disk), context=ADMIN)
    assert place.rows()['blobs'] == ['a-disk', 'an-image']
    store.delete(locate(image), context=ADMIN)


@pytest.fixture
def snapshot(place, store, data):
    """The location of a snapshot's image, as the agent mints it."""
    catalog = place.repository.catalog
    add(store, data, image_id='base', context=ADMIN)
    version = catalog.clone(
        'base', None, blob_id='disk', kind=api.Kind.DISK, project_id='demo'
    )
    catalog.begin_session('test', 'session')
    catalog.publish(
        'disk',
        epoch=catalog.claim('disk', 'secret'),
        parent=1,
        commit_id='commit',
        root=version.root,
        size_bytes=version.size_bytes,
        session_id='session',
        secret='secret',
        image=api.NewImage('snap', 'demo'),
    )
    catalog.end_session('session')
    assert catalog.get('snap').state is api.State.PROVISIONAL
    return catalog.mint_location('snap', 1)


@pytest.mark.parametrize('method', ['get', 'get_size'])
def test_reading_a_snapshot_ends_its_being_provisional(
    store, place, snapshot, method
):
    getattr(store, method)(locate(snapshot))
    catalog = place.repository.catalog
    assert catalog.get('snap').state is api.State.ACTIVE


def test_a_snapshot_reads_as_the_disk_it_is_of(store, snapshot, data):
    assert read(store, snapshot)[0] == data
    store.delete(locate(snapshot), context=DEMO)


def forge(url):
    head, _, mac = url.partition('?mac=')
    other = '0' if mac[0] != '0' else '1'
    return f'{head}?mac={other}{mac[1:]}'


def rename(url):
    return url.replace('/1?mac', '/2?mac')


def move(url):
    return f'blob://{uuid.uuid4()}/{url.split("/", 3)[3]}'


@pytest.mark.parametrize('change', [forge, rename, move])
def test_a_location_that_was_not_minted_here_is_refused(
    store, url, data, change
):
    for operation in (store.get, store.get_size, store.delete):
        with pytest.raises(exceptions.BadStoreUri) as refusal:
            operation(locate(change(url)), context=ADMIN)
        assert url.partition('?mac=')[2] not in str(refusal.value)
    assert read(store, url)[0] == data


def test_a_location_of_another_repository_is_refused(
    store, new_store, new_repository, data
):
    foreign = new_store(new_repository('other').options, 'blob2')
    url = add(foreign, data)[0]
    for operation in (store.get, store.get_size, store.delete):
        with pytest.raises(exceptions.BadStoreUri):
            operation(locate(url), context=ADMIN)
    assert read(foreign, url)[0] == data


def test_sizes_are_kept_a_moment_so_that_three_questions_cost_one(
    store, url, monkeypatch
):
    catalog = store._repository().catalog
    asked = []
    check = catalog.check_location
    monkeypatch.setattr(
        catalog, 'check_location', lambda url: asked.append(url) or check(url)
    )
    for _ in range(3):
        store.get_size(locate(url))
    assert asked == [url]
    store.delete(locate(url), context=DEMO)
    with pytest.raises(exceptions.NotFound):
        store.get_size(locate(url))


def test_acls_are_not_ours(store, url):
    assert store.set_acls(locate(url), public=True, read_tenants=['a']) is None


def test_a_chunk_size_is_the_new_images_own(new_store, place, data):
    size = 1024 * 1024
    store = new_store(place.options, blob_store_chunk_size_bytes=size)
    url = add(store, data, image_id='image')[0]
    assert place.repository.catalog.get('image').chunk_size_bytes == size
    assert read(store, url)[0] == data


def test_a_damaged_chunk_is_an_error_and_never_other_bytes(store, place, url):
    chunks = place.folder / 'chunks'
    largest = max(
        (path for path in chunks.rglob('*') if path.is_file()),
        key=lambda path: path.stat().st_size,
    )
    content = bytearray(largest.read_bytes())
    content[1000] ^= 1
    largest.chmod(0o600)
    largest.write_bytes(content)
    with pytest.raises(exceptions.GlanceStoreException, match='checksum'):
        read(store, url)


# Configuration


def test_configuring_connects_to_nothing(new_store, tmp_path):
    absent = {
        'blob_store_chunk_store': f'file://{tmp_path}/absent',
        'blob_store_catalog': f'sqlite:///{tmp_path}/absent/catalog',
    }
    store = new_store(absent)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(exceptions.GlanceStoreException):
        store.add('image', io.BytesIO(b'data'), 4, 'sha512')


@pytest.mark.expect_logs('are not recognised until')
def test_a_store_works_once_its_repository_is_there(
    new_store, new_repository, tmp_path, monkeypatch
):
    folder = tmp_path / 'late'
    store = new_store(
        {
            'blob_store_chunk_store': f'file://{folder}/chunks',
            'blob_store_catalog': f'sqlite:///{folder}/catalog.sqlite',
        }
    )
    assert store.url_prefix is None
    new_repository('late')
    # A failure is remembered, so that requests do not queue up behind it.
    with pytest.raises(exceptions.GlanceStoreException):
        add(store, b'data')
    store._connection._failed_until = 0
    assert read(store, add(store, b'data')[0])[0] == b'data'
    assert store.url_prefix.startswith('blob://')


def configure_two(first, second):
    conf = cfg.ConfigOpts()
    conf([])
    conf.register_opt(cfg.DictOpt('enabled_backends'))
    conf.set_override('enabled_backends', {'one': 'blob', 'two': 'blob'})
    glance_store.register_store_opts(conf)
    for store_id, options in (('one', first), ('two', second)):
        for name, value in options.items():
            conf.set_override(name, value, group=store_id)
    glance_store.create_multi_stores(conf)
    return glance_location.SCHEME_TO_CLS_BACKEND_MAP['blob']


def test_two_stores_on_one_repository_do_not_start(new_store, place):
    with pytest.raises(exceptions.BackendException) as refusal:
        configure_two(place.options, place.options)
    assert 'stores "one" and "two" have the same repository' in str(
        refusal.value
    )


@pytest.mark.expect_logs('are not recognised until')
def test_two_stores_that_turn_out_to_have_one_repository_do_not_work(
    new_store, place, tmp_path
):
    alias = tmp_path / 'alias'
    alias.symlink_to(place.folder)
    stores = configure_two(
        place.options,
        {
            'blob_store_chunk_store': f'file://{alias}/chunks',
            'blob_store_catalog': f'sqlite:///{alias}/catalog.sqlite',
        },
    )
    with pytest.raises(exceptions.BadStoreConfiguration) as refusal:
        add(stores['two']['store'], b'data')
    assert '"one" and "two" have the same' in str(refusal.value)
    assert stores['two']['store'].url_prefix is None
    add(stores['one']['store'], b'data')


def test_two_stores_have_two_prefixes(new_store, new_repository):
    stores = configure_two(
        new_repository('a').options, new_repository('b').options
    )
    prefixes = {each['store'].url_prefix for each in stores.values()}
    assert len(prefixes) == 2


# The suites that glance_store ships


class TestMultiStore(
    base.MultiStoreBaseTest,
    test_store_capabilities.TestStoreCapabilitiesChecking,
):
    @pytest.fixture(autouse=True)
    def _place(self, place):
        self.place = place

    def setUp(self):
        super().setUp()
        self.conf = cfg.ConfigOpts()
        self.conf([])
        self.conf.register_opt(cfg.DictOpt('enabled_backends'))
        self.config(enabled_backends={'blob1': 'blob', 'file1': 'file'})
        glance_store.register_store_opts(self.conf)
        self.config(default_backend='blob1', group='glance_store')
        self.config(group='blob1', **self.place.options)
        self.addCleanup(
            setattr, glance_location, 'SCHEME_TO_CLS_BACKEND_MAP', {}
        )
        glance_location.SCHEME_TO_CLS_BACKEND_MAP = {}
        glance_store.create_multi_stores(self.conf)
        self.store = driver.Store(self.conf, backend='blob1')
        self.store.configure()
        self.register_store_backend_schemes(self.store, 'blob', 'blob1')

    def test_location_url_prefix_is_set(self):
        uuid = self.place.repository.info.uuid
        self.assertEqual(f'blob://{uuid}/', self.store.url_prefix)

    def test_entry_point_and_scheme_are_one_name(self):
        stores = glance_location.SCHEME_TO_CLS_BACKEND_MAP['blob']
        self.assertEqual('blob', stores['blob1']['store_entry'])

    def test_get_non_existing_identifier(self):
        self.assertRaises(
            exceptions.UnknownScheme,
            glance_location.get_location_from_uri_and_backend,
            f'{self.store.url_prefix}image/1?mac={"0" * 64}',
            'blob3',
            conf=self.conf,
        )


class TestFunctional(functional_base.BaseFunctionalTests):
    @pytest.fixture(autouse=True)
    def _store(self, store):
        self.ready = store

    def __init__(self, *args, **kwargs):
        # Not the base's, which looks for credentials of a cloud.
        super(functional_base.Base, self).__init__(*args, **kwargs)

    def setUp(self):
        # Not the base's, which makes the one store of a legacy Glance.
        super(functional_base.Base, self).setUp()
        self.store = self.ready
        glance_location.register_scheme_map(
            {
                'blob': {
                    'store': self.store,
                    'location_class': driver.StoreLocation,
                    'store_entry': 'blob',
                }
            }
        )
