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
"""What a disk image is, and whether it is safe to have QEMU open it.

A disk image may be made to have its reader open other files: a backing file,
a data file, an extent. So it is looked at before any program that would
follow is started: by oslo.utils' inspectors, which Nova and Glance use, and
for what those leave out here. QEMU's own probing is never asked: a guest
could have written what it finds.
"""

import logging
import struct
from typing import Any, BinaryIO

from lazyblob import exceptions

#: What can be converted, and QEMU's name for it.
DRIVERS = {
    'qcow2': 'qcow2',
    'vdi': 'vdi',
    'vhd': 'vpc',
    'vhdx': 'vhdx',
    'vmdk': 'vmdk',
}
#: What is stored as it is: also what a raw disk may have at its head.
RAW = frozenset(('raw', 'gpt', 'iso'))

_LOG = logging.getLogger('oslo_utils.imageutils')
_HEAD_BYTES = 2 << 20
_READ_BYTES = 64 << 10
_QCOW2_CRYPT = struct.Struct('>32xI')
_VHD_TYPE = struct.Struct('>60xI')
_VHD_DIFFERENCING = 4
_WHY = {
    'backing_file': 'has a backing file',
    'data_file': 'keeps its data in another file',
    'unknown_features': 'has features that are not known to be safe',
    'descriptor': 'has extents in other files, or a subformat other than '
    'monolithicSparse and streamOptimized',
    'banned': 'is of a format that nothing supports any more',
}
_FLATTEN = (
    'flatten it where you trust it: qemu-img convert -O qcow2 {0} NEW, and '
    'import that'
)


class _Head:
    """What an inspector reads from, and cannot close."""

    def __init__(self, source: BinaryIO) -> None:
        self.read = source.read


def detect(source: BinaryIO, path: str) -> str:
    """The format that a file's head tells; no program looks at it.

    :raises InvalidConfiguration: it looks like several at once
    """
    wrapper = _inspectors().InspectWrapper(_Head(source))
    read_bytes = 0
    while read_bytes < _HEAD_BYTES and not wrapper.formats:
        piece = wrapper.read(_READ_BYTES)
        if not piece:
            break
        read_bytes += len(piece)
    wrapper.close()
    found = sorted({str(each) for each in wrapper.formats or ()} or {'raw'})
    if len(found) == 1:
        return found[0]
    if RAW.issuperset(found):
        return 'raw'
    raise exceptions.InvalidConfiguration(
        f'"{path}" looks like {" and ".join(found)} at once; say which it '
        f'is, "--format raw" if it is a raw disk'
    )


def check(path: str, source_format: str) -> None:
    """Refuse what points elsewhere or cannot be read, before QEMU opens it.

    :param source_format: of :data:`DRIVERS`, and detected
    :raises InvalidConfiguration: and how to make a safe one of it
    """
    inspectors = _inspectors()
    reasons = []
    try:
        found = inspectors.get_inspector(source_format).from_file(path)
        found.safety_check()
    except inspectors.SafetyCheckFailed as exc:
        for name, failure in exc.failures.items():
            reasons.append(_WHY.get(name, f'fails check "{name}": {failure}'))
    except inspectors.ImageFormatError as exc:
        raise exceptions.InvalidConfiguration(
            f'"{path}" is a damaged {source_format} image: {exc}'
        ) from exc
    reasons += _own_reasons(path, source_format)
    if reasons:
        raise exceptions.InvalidConfiguration(
            f'{source_format} image "{path}" {" and ".join(reasons)}, which '
            f'is not followed; {_FLATTEN.format(path)}'
        )


def refuse(path: str, found: str) -> exceptions.InvalidConfiguration:
    """Of a format that is none of ours."""
    how = 'convert it to qcow2 or raw first'
    if found == 'luks':
        how = 'decrypt it first (cryptsetup open), or store it with "--format '
        how += 'raw" as the encrypted disk that it is'
    return exceptions.InvalidConfiguration(
        f'"{path}" is a {found} image, which is not converted; {how}'
    )


def _own_reasons(path: str, source_format: str) -> list[str]:
    """What the inspectors do not look at."""
    with open(path, 'rb') as source:
        head = source.read(512)
    if source_format == 'qcow2' and len(head) >= _QCOW2_CRYPT.size:
        (method,) = _QCOW2_CRYPT.unpack_from(head)
        return ['is encrypted'] if method else []
    if source_format == 'vhd' and len(head) >= _VHD_TYPE.size:
        (kind,) = _VHD_TYPE.unpack_from(head)
        return ['has a parent'] if kind == _VHD_DIFFERENCING else []
    return []


def _inspectors() -> Any:
    try:
        from oslo_utils.imageutils import format_inspector
    except ImportError as exc:
        raise exceptions.InvalidConfiguration(
            'oslo.utils is older than 7.4, so that no image can be '
            'inspected; upgrade it, or convert the file to raw elsewhere and '
            'give "--format raw"'
        ) from exc
    # What they log is said by what they raise.
    _LOG.addHandler(logging.NullHandler())
    return format_inspector
