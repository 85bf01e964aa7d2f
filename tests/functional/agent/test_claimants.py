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
"""Two agents, one state directory."""

import uuid


MIB = 1024 * 1024


def test_a_second_agent_is_refused_and_the_first_goes_on(site, noise):
    data = noise(MIB)
    image = site.image(data)
    client = site.start()
    instance = str(uuid.uuid4())
    path = client.attach(instance, 'disk', clone_blob=image)['path']
    second = type(site.agent)(site)
    try:
        assert second.process.wait(30) != 0
    finally:
        second.kill()
    pid = site.agent.process.pid
    assert f'belongs to the agent with pid {pid}' in site.log()
    with open(path, 'r+b', buffering=0) as disk:
        assert disk.read(4096) == data[:4096]
        disk.write(b'still there')
    assert client.status()['mirrors'] == 1
