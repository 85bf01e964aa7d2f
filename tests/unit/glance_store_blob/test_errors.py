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
"""Which of Glance's errors says the same as ours."""

import pytest
from glance_store import exceptions

from glance_store_blob import errors
from lazyblob import exceptions as lazy

SAME = {
    lazy.BadLocation: exceptions.BadStoreUri,
    lazy.CatalogUnavailable: errors.Unavailable,
    lazy.ChunkCorrupt: exceptions.GlanceStoreException,
    lazy.Conflict: exceptions.GlanceStoreException,
    lazy.Forbidden: exceptions.Forbidden,
    lazy.InvalidConfiguration: exceptions.GlanceStoreException,
    lazy.NotFound: exceptions.NotFound,
    lazy.SizeMismatch: exceptions.Invalid,
    lazy.StaleWriter: exceptions.GlanceStoreException,
    lazy.StoreDenied: exceptions.StorageWriteDenied,
    lazy.StoreError: exceptions.GlanceStoreException,
    lazy.StoreFull: exceptions.StorageFull,
    lazy.TemporaryStoreError: errors.Unavailable,
}


def below(base):
    for each in base.__subclasses__():
        yield each
        yield from below(each)


def test_every_error_of_the_library_has_its_translation():
    # A store's own kinds of an error are translated as that error.
    public = {
        each
        for each in below(lazy.LazyBlobError)
        if each.__module__ == lazy.__name__
    }
    assert public == set(SAME)


@pytest.mark.parametrize('ours', SAME, ids=lambda ours: ours.__name__)
def test_an_error_is_translated_with_its_text_and_its_cause(ours):
    error = ours('what happened; 100% what to do')
    with pytest.raises(exceptions.GlanceStoreException) as raised:
        with errors.translated():
            raise error
    assert type(raised.value) is SAME[ours]
    assert str(raised.value) == raised.value.msg == str(error)
    assert raised.value.__cause__ is error


def test_who_is_away_is_503_to_every_request_of_glance():
    # Downloads look for the one, uploads and deletions for the other.
    assert issubclass(errors.Unavailable, exceptions.RemoteServiceUnavailable)
    if hasattr(exceptions, 'TimeoutError'):
        assert issubclass(errors.Unavailable, exceptions.TimeoutError)


def test_another_error_passes_as_it_is():
    error = KeyError('x')
    with pytest.raises(KeyError) as raised, errors.translated():
        raise error
    assert raised.value is error


def test_errors_between_pieces_are_translated_too():
    def pieces():
        yield b'1'
        raise lazy.TemporaryStoreError('away')

    translated = errors.translated_pieces(pieces())
    assert next(translated) == b'1'
    with pytest.raises(errors.Unavailable, match='away'):
        next(translated)


def test_closing_early_reaches_the_pieces():
    closed = []

    def pieces():
        try:
            yield b'1'
            yield b'2'
        finally:
            closed.append(True)

    translated = errors.translated_pieces(pieces())
    next(translated)
    translated.close()
    assert closed == [True]
