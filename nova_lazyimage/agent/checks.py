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
"""What must be right around an agent: one line each, with the remedy.

The agent looks when it starts; ``lazyimage-status check`` prints it, together
with what configurations.py finds in Nova's and Glance's files.
"""

import contextlib
import dataclasses
import enum
import os
import pathlib
import platform
import re
import stat
from collections.abc import Iterator

FUSE_DEVICE = pathlib.Path('/dev/fuse')
REQUEST_TIMEOUT = pathlib.Path('/proc/sys/fs/fuse/default_request_timeout')
TMPFS_MAGIC = ('tmpfs', 'ramfs')
RESEND_KERNEL = (6, 9)


class Level(enum.IntEnum):
    """How bad it is; also the exit status of the check."""

    GOOD = 0
    WARNING = 1
    FAILURE = 2


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    name: str
    message: str
    option: str = ''

    @property
    def good(self) -> bool:
        """Nothing to do."""
        return self.level is Level.GOOD


def judge(
    good: bool,
    name: str,
    message: str,
    level: Level = Level.FAILURE,
    option: str = '',
) -> Finding:
    return Finding(Level.GOOD if good else level, name, message, option)


def of_host(
    mount_root: pathlib.Path, run: pathlib.Path, socket: str
) -> list[Finding]:
    """Kernel, FUSE, folders: what an agent needs to start."""
    found = [
        judge(
            FUSE_DEVICE.exists(),
            'FUSE',
            '/dev/fuse is missing; load the kernel module "fuse"',
        ),
        _request_timeout(),
        judge(
            file_system(run) in TMPFS_MAGIC,
            'live maps',
            f'[agent] run_directory "{run}" is not on a tmpfs; live maps are '
            'slower there and wear the disk: choose a folder below /run',
            Level.WARNING,
        ),
        judge(
            not socket.startswith(f'{mount_root}/'),
            'socket',
            f'[agent] socket "{socket}" lies below [agent] mount_root; '
            'choose a folder below /run',
        ),
    ]
    release = platform.release()
    version = tuple(int(n) for n in re.findall(r'\d+', release)[:2])
    found.append(
        Finding(
            Level.GOOD,
            'kernel',
            f'kernel {release} '
            + (
                'sends unanswered FUSE requests again (RESEND)'
                if version >= RESEND_KERNEL
                else 'has no FUSE RESEND (6.9 has): a take-over relies on '
                'the agent\'s own records alone'
            ),
        )
    )
    return found


def _request_timeout() -> Finding:
    value = '0'
    with contextlib.suppress(OSError):
        value = REQUEST_TIMEOUT.read_text().strip()
    return judge(
        value == '0',
        'FUSE time-out',
        f'sysctl fs.fuse.default_request_timeout is "{value}"; set it to 0: '
        'a disk whose store is away must wait, and the kernel would end the '
        'whole mount',
    )


def of_mount(mount_root: pathlib.Path, socket: str) -> list[Finding]:
    """What a running agent shows to nova-compute."""
    found = []
    kind, alive = '', False
    with contextlib.suppress(OSError):
        kind = mount_kind(mount_root)
        os.statvfs(mount_root)
        alive = True
    found.append(
        judge(
            kind == 'fuse.lazyimage' and alive,
            'mount',
            f'no agent serves "{mount_root}" '
            f'({"its server is dead" if kind else "nothing is mounted"}); '
            'start lazyimage-agent',
        )
    )
    try:
        status = os.stat(socket)
    except OSError as exc:
        found.append(
            Finding(
                Level.FAILURE,
                'socket',
                f'no socket "{socket}": {exc.strerror}; start '
                'lazyimage-agent, or correct [agent] socket',
            )
        )
        return found
    mode = stat.S_IMODE(status.st_mode)
    found.append(
        judge(
            stat.S_ISSOCK(status.st_mode) and not mode & 0o007,
            'socket',
            f'socket "{socket}" has mode {mode:04o}; 0660 keeps strangers out',
        )
    )
    return found


def mount_kind(path: pathlib.Path) -> str:
    """Type of the file system that is mounted exactly there; '' if none."""
    kind = ''
    for at, found in _mounts():
        if at == str(path):
            kind = found
    return kind


def file_system(path: pathlib.Path) -> str:
    """Type of the file system that holds a path."""
    best, kind = '', ''
    real = os.path.realpath(path)
    for at, found in _mounts():
        inside = at == '/' or real == at or real.startswith(f'{at}/')
        if inside and len(at) >= len(best):
            best, kind = at, found
    return kind


def _mounts() -> Iterator[tuple[str, str]]:
    with open('/proc/self/mountinfo') as file:
        for line in file:
            left, _, right = line.partition(' - ')
            at = left.split()[4]
            for code, text in (
                ('\\040', ' '),
                ('\\011', '\t'),
                ('\\134', '\\'),
            ):
                at = at.replace(code, text)
            yield at, right.split()[0]
