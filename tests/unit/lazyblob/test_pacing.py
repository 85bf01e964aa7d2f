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
"""Pacing is asserted on a clock that only moves when somebody sleeps."""

import pytest

from lazyblob import pacing


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        assert seconds >= 0
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


def test_bytes_take_the_time_that_the_bound_gives_them(clock):
    pace = pacing.Pace(1000, clock=clock, sleep=clock.sleep)
    for _ in range(10):
        pace.pay(500)
    assert clock.now == pytest.approx(105.0)


def test_time_that_passed_otherwise_counts(clock):
    pace = pacing.Pace(1000, clock=clock, sleep=clock.sleep)
    pace.pay(500)
    clock.now += 0.4  # Reading took that long: the rest is waited for.
    pace.pay(500)
    assert clock.now == pytest.approx(101.4)


def test_an_idle_hour_is_no_credit(clock):
    pace = pacing.Pace(1000, clock=clock, sleep=clock.sleep)
    pace.pay(500)
    clock.now += 3600
    before = clock.now
    for _ in range(4):
        pace.pay(500)
    assert clock.now - before == pytest.approx(2.0)


def test_without_a_bound_nobody_waits(clock):
    pacing.Pace(0, clock=clock, sleep=clock.sleep).pay(1 << 40)
    assert clock.now == 100.0
