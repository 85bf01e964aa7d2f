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
"""Every option of ``lazyimage.conf``, for the generator of its sample."""

import itertools
from collections.abc import Iterable
from typing import Any

from nova_lazyimage.conf import agent
from nova_lazyimage.conf import conductor
from nova_lazyimage.conf import repository


def list_opts() -> Iterable[tuple[Any, Any]]:
    """Entry point ``oslo.config.opts`` named ``lazyimage``."""
    return list(
        itertools.chain(
            repository.list_opts(), agent.list_opts(), conductor.list_opts()
        )
    )
