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
"""Which disks of a server are lazy, written down where Nova looks.

``<instances_path>/<uuid>/lazyimage.json`` is the truth about a server's
backend (contract 37): a disk named there is lazy whatever the agent says, and
a disk not named there never is. A disk is ``attaching`` from before the agent
hears of it until its content was inspected and its size is right, and
``attached`` from then on; only an attached disk may be started from.

The file is replaced as a whole and synced with its folder before anything
relies on it. Nova serialises the operations of a server; nothing is locked
here.
"""

import contextlib
import json
import os
from typing import Any

from nova.i18n import _
from nova.virt.libvirt import utils as libvirt_utils

from nova_lazyimage import exceptions

NAME = 'lazyimage.json'
VERSION = 1
ATTACHING = 'attaching'
ATTACHED = 'attached'

Disks = dict[str, dict[str, Any]]


def path_of(instance: Any) -> str:
    """Where the marker of a server is."""
    return os.path.join(libvirt_utils.get_instance_path(instance), NAME)


def read(instance: Any) -> Disks:
    """The lazy disks of a server, by name; none if there is no marker.

    :raises MarkerDamaged: there is one, and it cannot be understood
    """
    return read_file(path_of(instance))


def read_file(path: str) -> Disks:
    """As :func:`read`, by path."""
    try:
        with open(path, encoding='utf-8') as file:
            data = json.load(file)
        if data['version'] != VERSION:
            raise ValueError(f'version {data["version"]} is not {VERSION}')
        disks: Disks = data['disks']
        for entry in disks.values():
            if entry['state'] not in (ATTACHING, ATTACHED):
                raise ValueError(f'state "{entry["state"]}" is unknown')
    except FileNotFoundError:
        return {}
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise exceptions.MarkerDamaged(
            reason=_('"%(path)s" cannot be understood: %(error)s')
            % {'path': path, 'error': exc}
        ) from exc
    return disks


def is_attached(instance: Any, disk: str) -> bool:
    """A disk that was made to the end."""
    entry = read(instance).get(disk)
    return entry is not None and entry['state'] == ATTACHED


def set_disk(instance: Any, disk: str, state: str, **facts: Any) -> None:
    """Name a disk, durably."""
    disks = read(instance)
    disks[disk] = {'state': state, **facts}
    _write(path_of(instance), disks)


def remove_disk(instance: Any, disk: str) -> None:
    """Forget a disk, durably; the last one takes the file along."""
    disks = read(instance)
    if disks.pop(disk, None) is None:
        return
    if disks:
        _write(path_of(instance), disks)
    else:
        remove(instance)


def remove(instance: Any) -> None:
    """Forget every disk; a server without a marker is fine."""
    path = path_of(instance)
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    sync_folder(os.path.dirname(path))


def sync_folder(folder: str) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(path: str, disks: Disks) -> None:
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    new = f'{path}.new'
    try:
        with open(new, 'w', encoding='utf-8') as file:
            json.dump({'version': VERSION, 'disks': disks}, file, indent=1)
            file.write('\n')
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(new)
        raise
    sync_folder(folder)
    # The folder may be new: its own name has to be durable as well.
    sync_folder(os.path.dirname(folder))
