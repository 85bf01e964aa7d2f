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
"""What Nova's door raises: Nova's own classes, or children of them.

Nova decides by class what happens to a request (``ImageUnacceptable`` ends a
build, anything else is tried on another host), so each says why it is what it
is.
"""

from nova import exception
from nova.i18n import _


class AgentAway(exception.NovaException):
    """The agent, or what it needs, does not answer: another host may."""

    msg_fmt = _('The lazyimage agent cannot do its work now: %(reason)s')
    code = 503


class AgentRefused(exception.NovaException):
    """The agent answered, and said no."""

    msg_fmt = _('The lazyimage agent refused: %(reason)s')


class DiskNotServed(exception.NovaException):
    """The disk a server has is not there: it must not start on another."""

    msg_fmt = _(
        'Disk "%(disk)s" of server %(instance_uuid)s cannot be used: '
        '%(reason)s'
    )


class MarkerDamaged(exception.InvalidDiskInfo):
    """Nobody can say what disk the server has."""


class ImageNotLazy(exception.ImageUnacceptable):
    """The image is fine, but cannot be booted lazily: it may be copied."""


class SnapshotFailed(exception.NovaException):
    """No image was made; nothing is left of it."""

    msg_fmt = _('Snapshot of server %(instance_uuid)s failed: %(reason)s')
