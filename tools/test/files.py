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
"""What every text file of the repository has in common.

Code opens with its licence, lines have no blanks at their ends, files end
with one newline and are not forgotten in the middle of a merge, what starts
with ``#!`` can be run.
"""

import os
import pathlib
import sys

APACHE = '# Licensed under the Apache License, Version 2.0 (the "License");'
SPDX = '// SPDX-License-Identifier: Apache-2.0'


def complaints(path: pathlib.Path) -> list[str]:
    """What is wrong with one file."""
    data = path.read_bytes()
    if b'\0' in data or not data or path.is_symlink():
        return []
    if 'golden' in path.parts:  # fixtures are what they are
        return []
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return ['1: not UTF-8']
    found = []
    lines = text.split('\n')
    head = '\n'.join(lines[:3])
    script = text.startswith('#!')
    if (path.suffix in ('.py', '.pyi', '.sh') or script) and APACHE not in (
        head
    ):
        found.append('1: does not open with the Apache licence in full')
    if path.suffix == '.rs' and not text.startswith(SPDX):
        found.append(f'1: does not open with "{SPDX}"')
    if script and not os.access(path, os.X_OK):
        found.append('1: starts with "#!" but cannot be executed')
    if not text.endswith('\n') or text.endswith('\n\n'):
        found.append(f'{len(lines)}: does not end with exactly one newline')
    for number, line in enumerate(lines, 1):
        if line != line.rstrip():
            found.append(f'{number}: blanks at the end')
        if line.startswith(('<<<<<<< ', '>>>>>>> ')):
            found.append(f'{number}: left from a merge')
    return found


def main(names: list[str]) -> int:
    found = [
        f'{name}:{complaint}'
        for name in names
        for complaint in complaints(pathlib.Path(name))
    ]
    print('\n'.join([*found, f'{len(names)} files']))
    return 1 if found or not names else 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
