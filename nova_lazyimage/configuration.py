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
"""What must be right before nova-compute serves: its options, its agent.

Every error names the option, its value and the remedy. A compute host without
its agent could neither start nor make a server, so nova-compute waits for it
for ``[lazyimage] agent_start_timeout_seconds`` and then ends: the service
manager starts it again, the scheduler sees the host as down meanwhile, and
running guests do not notice. A host that came up without would be offered
servers only to lose them.
"""

import os
import time
from typing import Any

import nova.conf
from nova import exception
from nova.i18n import _
from oslo_log import log as logging

from nova_lazyimage import disks
from nova_lazyimage.agent import client

CONF = nova.conf.CONF
LOG = logging.getLogger(__name__)

API_VERSION = 1
RETRY_SECONDS = 1.0


def check_options() -> None:
    """The options that would lose data, or do nothing, if they were wrong.

    :raises InvalidConfiguration: naming the first of them
    """
    _require(
        CONF.libvirt.virt_type in ('kvm', 'qemu'),
        '[libvirt] virt_type',
        CONF.libvirt.virt_type,
        'set it to kvm or qemu',
    )
    _require(
        CONF.libvirt.images_type in ('raw', 'flat'),
        '[libvirt] images_type',
        CONF.libvirt.images_type,
        'set it to raw',
    )
    _require(
        not CONF.use_cow_images,
        '[DEFAULT] use_cow_images',
        CONF.use_cow_images,
        'set it to False: Nova would take raw disks for qcow2',
    )
    _require(
        CONF.force_raw_images,
        '[DEFAULT] force_raw_images',
        CONF.force_raw_images,
        'set it to True: images that are copied must end as raw disks',
    )
    _require(
        CONF.libvirt.snapshot_image_format in (None, '', 'raw'),
        '[libvirt] snapshot_image_format',
        CONF.libvirt.snapshot_image_format,
        'unset it: snapshots are raw',
    )
    _require(
        CONF.libvirt.inject_partition == -2,
        '[libvirt] inject_partition',
        CONF.libvirt.inject_partition,
        'set it to -2: files are injected by config drive only',
    )
    _require(
        not CONF.ephemeral_storage_encryption.enabled,
        '[ephemeral_storage_encryption] enabled',
        CONF.ephemeral_storage_encryption.enabled,
        'set it to False: it is for LVM only',
    )
    root = CONF.lazyimage.mount_root
    _require(
        os.path.isabs(root) and not f'{root}/'.startswith('/dev/'),
        '[lazyimage] mount_root',
        root,
        'use an absolute path that is not below /dev',
    )
    _require(
        CONF.lazyimage.glance_stores,
        '[lazyimage] glance_stores',
        '',
        'name the Glance stores of type blob',
    )
    released = CONF.lazyimage.released_directory
    _require(
        os.path.isdir(released) and os.access(released, os.W_OK | os.X_OK),
        '[lazyimage] released_directory',
        released,
        'let the user of nova-compute write there (start the agent once, and '
        'see that this user is in its socket_group)',
    )
    if not CONF.service_user.send_service_user_token:
        LOG.warning(
            '[service_user] send_service_user_token is False: Glance will '
            'refuse the locations of snapshots; set it to True and give '
            '[service_user] a user with role "service"'
        )


def check_agent(host: str) -> dict[str, Any]:
    """Wait for the agent, and see that it is ours.

    :raises InvalidConfiguration: it is not there in time, or another's
    """
    status = _wait_for_agent()
    if status.get('api_version') != API_VERSION:
        raise exception.InvalidConfiguration(
            _(
                'The agent at [lazyimage] agent_socket = "%(socket)s" speaks '
                'interface %(its)s, and this driver speaks %(mine)s: install '
                'the same release of lazyimage for both'
            )
            % {
                'socket': CONF.lazyimage.agent_socket,
                'its': status.get('api_version'),
                'mine': API_VERSION,
            }
        )
    mine, its = CONF.lazyimage.mount_root, str(status.get('mount_root'))
    _require(
        os.path.normpath(mine) == os.path.normpath(its),
        '[lazyimage] mount_root',
        mine,
        f'the agent mounts at "{its}": use the same path in nova.conf and '
        'in [agent] mount_root of lazyimage.conf',
    )
    if status.get('host') != host:
        raise exception.InvalidConfiguration(
            _(
                'The agent at [lazyimage] agent_socket = "%(socket)s" is that '
                'of host "%(its)s", and this is host "%(host)s": set [agent] '
                'host of lazyimage.conf to "%(host)s", or correct '
                'agent_socket'
            )
            % {
                'socket': CONF.lazyimage.agent_socket,
                'its': status.get('host'),
                'host': host,
            }
        )
    LOG.info(
        'Agent %(version)s serves %(root)s from repository %(repository)s',
        {
            'version': status.get('version'),
            'root': its,
            'repository': status.get('repository'),
        },
    )
    return status


def _wait_for_agent() -> dict[str, Any]:
    seconds = CONF.lazyimage.agent_start_timeout_seconds
    until = time.monotonic() + seconds
    said = False
    while True:
        try:
            status = disks.agent(disks.SHORT_SECONDS).status()
            if status.get('ready'):
                return status
            why = 'it is still exporting its disks'
        except client.AgentError as exc:
            why = str(exc)
        if time.monotonic() + RETRY_SECONDS >= until:
            raise exception.InvalidConfiguration(
                _(
                    'No agent is ready at [lazyimage] agent_socket = '
                    '"%(socket)s" after %(seconds)s s: %(why)s'
                )
                % {
                    'socket': CONF.lazyimage.agent_socket,
                    'seconds': seconds,
                    'why': why,
                }
            )
        if not said:
            LOG.info('Waiting for the agent: %s', why)
            said = True
        time.sleep(RETRY_SECONDS)


def _require(holds: Any, option: str, value: Any, remedy: str) -> None:
    if not holds:
        raise exception.InvalidConfiguration(
            _(
                '%(option)s = "%(value)s" does not go with compute_driver = '
                '%(driver)s: %(remedy)s'
            )
            % {
                'option': option,
                'value': value,
                'driver': CONF.compute_driver,
                'remedy': remedy,
            }
        )
