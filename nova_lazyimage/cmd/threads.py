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
"""Native threads, said before anything asks: eventlet is never imported.

oslo.service and futurist import it wherever it is installed, for a backend
that is not used here; that alone took as long as all other imports of a
daemon. So it is made to look as if it were not installed.
"""

import sys
from typing import Any, cast


def use_native() -> None:
    """Before oslo.service or oslo.messaging is imported."""
    # None: an import of it raises ModuleNotFoundError, says Python's
    # reference of the import system.
    cast('dict[str, Any]', sys.modules).setdefault('eventlet', None)
    try:
        from oslo_service import backend
    except ImportError:
        # A release before backends, or none: nothing brings eventlet in
        # that the daemons use.
        return
    backend.init_backend(backend.BackendType.THREADING)
