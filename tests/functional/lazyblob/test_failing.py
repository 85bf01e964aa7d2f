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
"""Whichever call fails, and how: a clear error or success, and nothing lost.

Every call of an operation fails once: of the chunk store and the catalog as
these may fail (for a moment, full, denied, done but not answered), and of the
system on a file with EIO, ENOSPC and EACCES. ``make test`` chooses one fault
for each call, by chance; ``make soak`` takes all.
"""

import dying
import operations
import places
import pytest

from lazyblob import exceptions
from lazyblob import patience

ENGINES = [('stripes', 'sqlite')]
if places.IS_LONG:
    ENGINES += [('files', 'mariadb'), ('bucket', 'mariadb')]
#: By what a point is: the faults that it may meet.
FAULTS = {
    'catalog': ('temporary', 'lost'),
    'file': ('EIO', 'ENOSPC', 'EACCES'),
    'read': ('EIO', 'EACCES'),
    'store': ('temporary', 'full', 'denied', 'lost'),
}
#: What a message of each kind has to say; others only say what failed.
REMEDIES = {
    'CatalogUnavailable': 'check the database|for this test',
    'InvalidConfiguration': 'choose another place',
    'StoreDenied': 'check who owns|for this test',
    'StoreFull': 'make room|for this test',
    'StoreError': '"/|for this test',
    'TemporaryStoreError': '"/|for this test',
}
KINDS = {
    'EACCES': {'StoreDenied'},
    'EIO': {'StoreError'},
    'ENOSPC': {'StoreFull'},
    'denied': {'StoreDenied'},
    'full': {'StoreFull'},
    'lost': {'TemporaryStoreError', 'CatalogUnavailable'},
    'temporary': {'TemporaryStoreError', 'CatalogUnavailable'},
}


def faults_at(name):
    if name == 'file.read':
        return FAULTS['read']
    return FAULTS.get(name.split('.')[0], FAULTS['store'])


@pytest.mark.soak
@pytest.mark.parametrize('name', list(operations.OPERATIONS))
@pytest.mark.parametrize('engines', ENGINES, indirect=True, ids='-'.join)
def test_whatever_call_fails_nothing_is_lost(engines, stage, name, rng):
    families = ['calls']
    if engines.store != 'bucket':
        families.append('file')
    trial = places.Forked(engines, stage, name, families)
    met = set()
    for where in trial.points(100 if places.IS_LONG else 1):
        chosen = faults_at(where[0])
        if not places.IS_LONG:
            chosen = [rng.choice(chosen)]
        for fault in chosen:
            outcome = trial.play(where, fault)
            if outcome.error is not None:
                met.add(where[0])
                judge(name, where[0], fault, *outcome.error)
    assert met, 'nothing failed: this proves nothing'


def judge(name, point, fault, kind, message):
    """Whether an error tells what happened, and what to do."""
    what = (name, point, fault, kind, message)
    assert hasattr(exceptions, kind), what
    remedies = REMEDIES[kind].split('|')
    assert any(remedy in message for remedy in remedies), what
    if kind not in ('CatalogUnavailable', 'InvalidConfiguration'):
        kinds = KINDS[fault]
        if name in ('Verify', 'Repair'):
            # What cannot be read is in their reports (operations.Verify).
            kinds = kinds | {'StoreError'}
        assert kind in kinds, what


@pytest.mark.expect_logs('Trying again in .* is full')
@pytest.mark.expect_logs('Trying again in .* disk I/O error')
@pytest.mark.expect_logs('was not ended')
def test_a_full_catalog_publishes_nothing_and_goes_on_with_room(
    small, tmp_path, monkeypatch
):
    """A real file system without room for SQLite's next page."""
    monkeypatch.setattr(patience, 'PAUSES_SECONDS', (0.01,))
    place = dying.Place(
        (tmp_path / 'chunks').as_uri(),
        f'sqlite:///{small}/catalog.sqlite',
        str(tmp_path),
    )
    repo = place.initialise()
    repo.create(operations.stream('kept'), blob_id='kept', **operations.SIZES)
    ballast = small / 'ballast'
    refused = 0
    for room in range(0, 80, 4):
        places.leave_room(small, ballast, room * 1024)
        try:
            operations.create(repo, f'image{room}', 'new')
        except exceptions.CatalogUnavailable as exc:
            refused += 1
            assert 'full' in str(exc) or 'disk I/O error' in str(exc)
            ballast.unlink()
            assert len(repo.catalog.list_versions()) == 1
            operations.create(repo, f'image{room}', 'new')
        ballast.unlink(missing_ok=True)
        assert operations.audit(repo) == 2
        repo.delete(f'image{room}')
    repo.close()
    assert 0 < refused < 20, 'all or none were refused: this proves nothing'
