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
"""Does an extra bring all that its part loads?

An environment that has more hides what is missing from an extra. So every
module of a distribution that the extra does not bring, directly or through
others, is made impossible to import before the part's modules are loaded.

Usage: ``extras.py EXTRA MODULE...``, in an environment with the wheel and at
least the extra.
"""

import importlib
import importlib.metadata as metadata
import sys

from packaging import requirements
from packaging import utils

PROJECT = 'lazyimage'


def brought(project: str, extras: frozenset[str]) -> set[str]:
    """Canonical names of all distributions that installing it brings."""
    found: dict[str, set[str]] = {}
    todo = [(utils.canonicalize_name(project), extras)]
    while todo:
        name, wanted = todo.pop()
        seen = found.get(name)
        if seen is not None and wanted <= seen:
            continue
        found[name] = (seen or set()) | wanted
        for line in metadata.requires(name) or []:
            requirement = requirements.Requirement(line)
            marker = requirement.marker
            if marker is None or any(
                marker.evaluate({'extra': extra}) for extra in {'', *wanted}
            ):
                todo.append(
                    (
                        utils.canonicalize_name(requirement.name),
                        frozenset(requirement.extras),
                    )
                )
    return set(found)


class OnlyThese:
    """Finds nothing, and refuses modules of other distributions."""

    def __init__(self, names: set[str]) -> None:
        self._names = names
        self._owners = metadata.packages_distributions()

    def find_spec(self, name, path=None, target=None):
        owners = self._owners.get(name.partition('.')[0])
        if owners and not any(
            utils.canonicalize_name(owner) in self._names for owner in owners
        ):
            raise ModuleNotFoundError(
                f'No module named "{name}": the extra does not bring it',
                name=name,
            )
        return None


def main(extra: str, *modules: str) -> None:
    names = brought(PROJECT, frozenset([extra]))
    sys.meta_path.insert(0, OnlyThese(names))
    from nova_lazyimage.cmd import threads

    threads.use_native()
    for module in modules:
        importlib.import_module(module)
    print(f'[{extra}]: {len(names)} distributions bring what it loads')


if __name__ == '__main__':
    main(*sys.argv[1:])
