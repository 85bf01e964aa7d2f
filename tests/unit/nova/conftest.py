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
"""Nova's own harness with native threads, and the agent's double beside it.

Nova forbids eventlet in a process with native threads; other tests of the
same process may need it, so it is only not used here.
"""

import os
import pathlib
import sys

os.environ.setdefault('OS_NOVA_DISABLE_EVENTLET_PATCHING', 'true')

from nova import monkey_patch

monkey_patch.poison_eventlet = lambda: None
monkey_patch.patch()

TESTS = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(TESTS / 'functional' / 'nova'))
sys.path.insert(0, str(pathlib.Path(__file__).parent))
