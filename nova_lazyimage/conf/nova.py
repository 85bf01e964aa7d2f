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
"""``[lazyimage]`` of nova.conf: what nova-compute knows of its agent.

Registered by the compute driver in Nova's own configuration; see
``driver.py``. ``glance_stores`` is a list: an image is lazy if Glance keeps
it in any of these stores.
"""

from oslo_config import cfg

GROUP = cfg.OptGroup('lazyimage', title='Lazily mirrored root disks')

OPTIONS = [
    cfg.StrOpt(
        'agent_socket',
        default='/run/lazyimage/agent.sock',
        help="""
Unix socket of this host's agent. The user of nova-compute must be in the
socket's group.

Related options: ``[agent] socket`` in lazyimage.conf, the same path.
""",
    ),
    cfg.StrOpt(
        'mount_root',
        default='/var/lib/lazyimage/mnt',
        help="""
Where the agent mounts the mirrors. Must not be below /dev, which Nova takes
for a block device.

Related options: ``[agent] mount_root`` in lazyimage.conf, the same path.
""",
    ),
    cfg.StrOpt(
        'released_directory',
        default='/var/lib/lazyimage/released',
        help="""
Where nova-compute leaves a file for each server that was deleted while the
agent was away; the agent then frees what the server had. nova-compute must be
able to write there.
""",
    ),
    cfg.ListOpt(
        'glance_stores',
        default=['blob1'],
        help="""
Ids of the Glance stores that keep images as blobs (``enabled_backends`` of
glance-api.conf: the part before the colon). An image in one of them is booted
lazily.
""",
    ),
    cfg.StrOpt(
        'fallback_fetch',
        default='copy',
        choices=[
            ('copy', 'download it whole; the server gets a plain raw file'),
            ('refuse', 'end the request with an error'),
        ],
        help="""
What happens when a server is to boot from an image that cannot be booted
lazily: it is in no store of ``glance_stores``, it is not raw, or its
signature must be verified.
""",
    ),
    cfg.StrOpt(
        'snapshot_fallback',
        default='refuse',
        choices=[
            ('copy', 'copy the whole disk and upload it'),
            ('refuse', 'end the request with an error'),
        ],
        help="""
What happens when a snapshot by COMMIT fails. A copy fetches the whole disk to
this host and needs room for it below ``[libvirt] snapshots_directory``.
""",
    ),
    cfg.StrOpt(
        'image_authorization',
        default='download',
        choices=[
            ('download', 'the request must be able to download the image'),
            ('metadata', 'it must be able to see the image'),
        ],
        help="""
What a request must be allowed to do with an image to boot from it. With
``download`` one byte of the image is asked for with the token of the request,
so that the policy ``download_image`` holds for lazy servers as well.
""",
    ),
    cfg.IntOpt(
        'agent_timeout_seconds',
        default=60,
        min=1,
        help="""
How long an answer of the agent is waited for, and how long a call is repeated
while the agent is restarting. Raise it if attaching is slow because the
catalog is.
""",
    ),
    cfg.IntOpt(
        'agent_start_timeout_seconds',
        default=60,
        min=0,
        help="""
How long a starting nova-compute waits for the agent to be ready before it
ends with an error (and is started again by the service manager).
""",
    ),
    cfg.IntOpt(
        'snapshot_timeout_seconds',
        default=3600,
        min=1,
        help="""
How long the upload of one snapshot may take. Raise it for slow stores and
large changes.
""",
    ),
    cfg.IntOpt(
        'image_active_timeout_seconds',
        default=120,
        min=1,
        help="""
How long Glance may take to make the image of a snapshot active once it was
told where the image is. Glance reports no failure of that step: when the time
is over the snapshot has failed.
""",
    ),
]


def register_opts(conf: cfg.ConfigOpts) -> None:
    """Make ``conf.lazyimage`` readable; repeating is harmless."""
    conf.register_group(GROUP)
    conf.register_opts(OPTIONS, group=GROUP)


def list_opts() -> list[tuple[cfg.OptGroup, list[cfg.Opt]]]:
    """Entry point ``oslo.config.opts`` named ``lazyimage.nova``."""
    return [(GROUP, OPTIONS)]
