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
"""No image whose bytes claim another format reaches a guest.

Glance accepts an image that says raw and begins with a qcow2 header, and
looks at nothing in an image that was added by its location. Nova's own
inspection (CVE-2024-32498, CVE-2024-40767) is run over the head of the clone,
which costs one chunk; it decides within that much.
"""

import os
from typing import Any

import nova.conf
from nova import utils
from nova.virt import images

from nova_lazyimage import disks

CONF = nova.conf.CONF

HEAD_BYTES = 256 * 1024


def check_head(image: Any, instance_uuid: str, disk: str) -> None:
    """Inspect the content of a disk that was just cloned.

    :raises ImageUnacceptable: it is not what the record says
    """
    if CONF.workarounds.disable_deep_image_inspection:
        return
    head = disks.head(instance_uuid, disk, HEAD_BYTES)
    # Nova's function wants a path. The file ends with the head: padded to the
    # disk's size, a header that points far away would have it read for hours.
    with utils.tempdir() as folder:
        path = os.path.join(folder, 'head')
        with open(path, 'wb') as file:
            file.write(head)
        images.do_image_deep_inspection(image, image['id'], path)
