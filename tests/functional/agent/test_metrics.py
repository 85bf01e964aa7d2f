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
"""Every metric that the agent has is documented, and the other way round."""

import pathlib
import re

from nova_lazyimage import _mirror
from nova_lazyimage.agent import latencies
from tests.functional import waits

METRICS = (
    pathlib.Path(__file__).parents[3] / 'doc/source/reference/metrics.rst'
)
SUFFIXES = ('_bucket', '_count', '_sum', '_created')


def documented():
    heads = re.findall(r'^``lazyimage_.*', METRICS.read_text(), re.MULTILINE)
    return set(re.findall(r'``(lazyimage_\w+)``', '\n'.join(heads)))


def test_python_knows_the_bounds_of_the_engines_histograms():
    bounds = _mirror.LATENCY_BOUNDS_MICROSECONDS
    assert bounds == latencies.BOUNDS_MICROSECONDS


def test_metrics_are_documented_by_name(site, noise, key):
    agent = site.start()
    path = agent.attach(*key, clone_blob=site.image(noise(1 << 20)))['path']
    with open(path, 'rb') as file:
        file.read()
    text = agent.metrics()
    told = set()
    for name, kind in re.findall(r'^# TYPE (\S+) (\w+)$', text, re.MULTILINE):
        if not name.endswith('_created'):
            told.add(name)
            unit = name.rsplit('_', 1)[1]
            assert (kind == 'counter') == (unit == 'total'), name
    assert told == documented()


def test_the_histograms_count_what_was_read(site, noise, key):
    agent = site.start()
    path = agent.attach(*key, clone_blob=site.image(noise(1 << 20)))['path']
    with open(path, 'rb') as file:
        file.read()

    def fetched():
        text = agent.metrics()
        found = re.search(
            r'lazyimage_request_seconds_count\{operation="read",'
            r'source="fetch"\} (\S+)',
            text,
        )
        return float(found.group(1)) > 0 and text

    # It is answered first, and counted then.
    text = waits.wait_for(fetched, 'a read that is counted')
    assert 'le="16.777216",operation="read",source="fetch"' in text
    mirror = agent.mirror(*key)
    assert mirror['reads'] > 0 <= mirror['hit_rate'] <= 1
    assert mirror['waits'] == [] and mirror['waiting'] == 0
    told = {(one['operation'], one['source']) for one in mirror['latencies']}
    assert ('read', 'fetch') in told
