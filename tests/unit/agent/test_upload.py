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
"""How uploads yield to guests."""

import threading

import pytest

from nova_lazyimage.agent import upload


class Clock:
    """Time and requests as a test says; pauses are noted."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        self.requests = 0
        self.pauses = []
        monkeypatch.setattr(upload.time, 'monotonic', lambda: self.now)

    def pass_by(self, seconds, requests):
        self.now += seconds
        self.requests += requests

    def wait(self, seconds):
        self.pauses.append(round(seconds, 6))


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def share(clock, percent=25):
    return upload.Share(percent, lambda: clock.requests)


def pause(made, clock, worked=0.01, took=0.01):
    made.pause(worked, took, clock)


def test_beside_busy_guests_a_thread_works_its_share(clock):
    made = share(clock)
    for _ in range(3):
        pause(made, clock)
        clock.pass_by(0.2, 1000)
    assert clock.pauses == [0.03] * 3


def test_what_a_store_takes_to_answer_is_pause_already(clock):
    made = share(clock)
    pause(made, clock, worked=0.01, took=0.025)
    pause(made, clock, worked=0.01, took=5)
    assert clock.pauses == [0.015, 0]


def test_beside_idle_guests_it_never_pauses_after_the_first_look(clock):
    made = share(clock)
    pause(made, clock)
    for _ in range(5):
        clock.pass_by(0.2, 1)
        pause(made, clock)
    assert clock.pauses == [0.03]


def test_of_a_look_that_is_long_ago_nothing_is_concluded(clock):
    made = share(clock)
    pause(made, clock)
    clock.pass_by(3600, 10)
    pause(made, clock)
    clock.pass_by(0.2, 0)
    pause(made, clock)
    assert clock.pauses == [0.03, 0.03]


def test_a_whole_share_never_pauses_nor_looks(clock):
    made = upload.Share(100, None)
    pause(made, clock)
    assert clock.pauses == []


def test_a_cancelled_commit_does_not_wait():
    cancelled = threading.Event()
    cancelled.set()
    upload.Share(1, lambda: 0).pause(60, 0, cancelled)
