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
"""Sizes that were asked for a moment ago."""

from glance_store_blob import sizes


def test_a_size_is_kept_for_a_moment(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(sizes.time, 'monotonic', lambda: now[0])
    recent = sizes.RecentSizes()
    assert recent.get('url') is None
    recent.put('url', 5)
    now[0] += sizes.KEPT_SECONDS / 2
    assert recent.get('url') == 5
    now[0] += sizes.KEPT_SECONDS / 2
    assert recent.get('url') is None


def test_a_size_can_be_dropped():
    recent = sizes.RecentSizes()
    recent.put('url', 5)
    recent.drop('url')
    recent.drop('url')
    assert recent.get('url') is None


def test_the_oldest_sizes_go_first(monkeypatch):
    monkeypatch.setattr(sizes, 'KEPT_MAX', 2)
    recent = sizes.RecentSizes()
    for url in ('a', 'b', 'a', 'c'):
        recent.put(url, 1)
    assert [recent.get(url) for url in 'abc'] == [1, None, 1]
