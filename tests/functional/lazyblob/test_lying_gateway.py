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
"""A gateway that fails and lies, at whichever request.

Imports, COMMITs, exports, copies, verifications and repairs go through a
proxy before a real object gateway, which disturbs one request of each: it is
repeated, or it is an error that says what failed; the same call succeeds
afterwards, and no version has a hole. ``make test`` chooses one fault for each
request, by chance; ``make soak`` takes all.
"""

import itertools

import places
import pytest

#: What passes, and is waited out by who has patience.
PASSING = ('500', '503', 'cut', 'half', 'lost', 'slow', 'truncated')
#: What no patience helps against: bytes are believed by their digest alone.
LIES = ('mangled', 'short', 'wrong')
OPERATIONS = (
    *('Create', 'Again', 'Commit', 'Larger', 'Export', 'Verify'),
    *('Copy', 'Repair'),
)
each_operation = pytest.mark.parametrize('name', OPERATIONS)

pytestmark = [
    pytest.mark.parametrize(
        'engines', [('bucket', 'sqlite')], indirect=True, ids='-'.join
    ),
    pytest.mark.expect_logs('Repeating what failed'),
    pytest.mark.expect_logs('was damaged in'),
    pytest.mark.soak,
]


def plan(trial, faults, rng):
    """Pairs of a request and its fault."""
    numbers = range(1, len(trial.trace) + 1)
    assert len(numbers) > 2, 'hardly a request: this proves nothing'
    if places.IS_LONG:
        return list(itertools.product(numbers, faults))
    # A quarter of them; over the tests and the runs, all.
    some = sorted(rng.sample(numbers, 1 + len(numbers) // 4))
    return [(nth, rng.choice(faults)) for nth in some]


@each_operation
def test_who_has_patience_waits_out_what_passes(engines, proxy, name, rng):
    trial = places.Disturbed(
        engines, proxy, name, retry_seconds=20, timeout_seconds=0.5
    )
    for nth, fault in plan(trial, PASSING, rng):
        outcome = trial.play(['request', nth], fault)
        assert outcome.error is None, (nth, fault, outcome.error)


@each_operation
def test_who_has_none_is_told_and_may_come_again(engines, proxy, name, rng):
    trial = places.Disturbed(
        engines, proxy, name, retry_seconds=0, timeout_seconds=0.5
    )
    told = 0
    for nth, fault in plan(trial, PASSING, rng):
        outcome = trial.play(['request', nth], fault)
        if outcome.error is not None:
            told += 1
            kind, message = outcome.error
            assert kind == 'TemporaryStoreError', (nth, fault, outcome.error)
            assert 'could not' in message and 's3://' in message
    assert told, 'nothing failed: this proves nothing'


@each_operation
def test_lies_are_errors_or_found_out(engines, proxy, name, rng):
    trial = places.Disturbed(
        engines, proxy, name, retry_seconds=20, timeout_seconds=0.5
    )
    for nth, fault in plan(trial, LIES, rng):
        outcome = trial.play(['request', nth], fault)
        if outcome.error is not None:
            kind, message = outcome.error
            assert kind in ('ChunkCorrupt', 'StoreError'), (nth, fault, kind)
            assert '"' in message
