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
"""Which guests a snapshot has frozen, for a nova-compute that died meanwhile.

A file in the server's folder from before the freeze until after the thaw:
who finds one at the start thaws that guest. It need not be durable, for a
guest does not outlive a loss of power either.
"""

import contextlib
import os
import pathlib
from typing import Any

import nova.conf
from nova.virt.libvirt import guest as libvirt_guest
from nova.virt.libvirt import utils as libvirt_utils
from oslo_log import log as logging

CONF = nova.conf.CONF
LOG = logging.getLogger(__name__)

NAME = 'lazyimage.frozen'


def _path(instance: Any) -> str:
    return os.path.join(libvirt_utils.get_instance_path(instance), NAME)


def note(instance: Any) -> None:
    """It is about to be frozen."""
    with open(_path(instance), 'w', encoding='utf-8'):
        pass


def forget(instance: Any) -> None:
    """It is thawed."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_path(instance))


def thaw_left(host: Any) -> None:
    """Thaw what an earlier nova-compute froze.

    :param host: Nova's libvirt host
    """
    for path in pathlib.Path(CONF.instances_path).glob(f'*/{NAME}'):
        server = path.parent.name
        try:
            domain = host.get_connection().lookupByUUIDString(server)
            libvirt_guest.Guest(domain).thaw_filesystems()
        except Exception as exc:  # the start goes on, whatever it is
            LOG.warning(
                'Server %(server)s may be frozen since nova-compute ended '
                'during a snapshot: %(error)s; if it hangs, thaw it with '
                '"virsh domfsthaw"',
                {'server': server, 'error': exc},
            )
        else:
            LOG.info(
                'Server %s is thawed: nova-compute ended during a snapshot',
                server,
            )
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
