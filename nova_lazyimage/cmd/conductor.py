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
"""``lazyimage-conductor``: owns the catalog, answers over oslo.messaging."""

import sys

from nova_lazyimage.cmd import threads


def main() -> int:
    """Answer until told to stop."""
    # oslo.messaging asks for the kind of threads when it is imported.
    threads.use_native()
    from nova_lazyimage.conductor import daemon

    return daemon.run(sys.argv[1:])


if __name__ == '__main__':
    sys.exit(main())
