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
"""Makes ``nova.virt.lazyimage`` importable without a file in Nova's tree.

Nova looks for ``compute_driver = lazyimage.LazyLibvirtDriver`` below
``nova.virt``. A file put there would break every Nova that is installed
editable, so the name is answered by a finder of the import system.

Run by ``nova_lazyimage.pth`` in every interpreter of the environment: nothing
but ``sys`` is imported until that one name is asked for, no other name is
answered, and no exception escapes.
"""

import sys

NAME = 'nova.virt.lazyimage'
SHIM = 'nova_lazyimage.shim'


class Finder:
    """Answers one exact name with the file of the shim."""

    lazyimage = True

    @staticmethod
    def find_spec(
        fullname: str, path: object = None, target: object = None
    ) -> object:
        """The spec of ``nova.virt.lazyimage``, and of nothing else."""
        if fullname != NAME:
            return None
        try:
            import importlib.util

            shim = importlib.util.find_spec(SHIM)
            if shim is None or shim.origin is None:
                return None
            return importlib.util.spec_from_file_location(NAME, shim.origin)
        except Exception:
            # Not installed, or half removed: Nova then says that it knows no
            # such driver.
            return None


def install() -> None:
    """Append the finder; a second time is harmless."""
    if not any(getattr(f, 'lazyimage', False) for f in sys.meta_path):
        sys.meta_path.append(Finder)  # type: ignore[arg-type]


install()
