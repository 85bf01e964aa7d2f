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
"""Waiting for a catalog that is away for a moment.

Every call of a catalog may be repeated. That is worth while only where what
came before cannot be: at the end of a long upload.
"""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from lazyblob import exceptions

LOG = logging.getLogger(__name__)
T = TypeVar('T')

PAUSES_SECONDS = (0.2, 1.0, 3.0)


def repeat(operation: Callable[[], T]) -> T:
    """The operation's answer. :raises CatalogUnavailable: after the last"""
    for pause_seconds in PAUSES_SECONDS:
        try:
            return operation()
        except exceptions.CatalogUnavailable as exc:
            LOG.warning('Trying again in %s s: %s', pause_seconds, exc)
            time.sleep(pause_seconds)
    return operation()
