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
"""Guests to boot, made on the spot from Debian's cloud kernel and busybox.

Nothing is mounted: GRUB's boot sector and core image are written by hand, the
one ext4 partition is filled by mke2fs. The guest counts its boots and leaves a
random mark at each on its root disk, and says both on its serial console, so
that a server from a snapshot proves what it carries::

    GUEST-UP boots=2 marks=81c5f0a2,9d20b6e1

With a config drive it then runs the user data as a shell script.

Where the server has the channel for it, QEMU's guest agent runs, as Debian
has it. Its hook says on the console what happens to the file systems::

    GUEST-FILES freeze
    GUEST-FILES thaw
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import lzma
import os
import pathlib
import random
import shutil
import stat
import struct
import subprocess
import tempfile

from cloud import settings

SOURCE = pathlib.Path('/usr/share/lazyimage-guest')
GRUB = pathlib.Path('/usr/lib/grub/i386-pc')
SECTOR = 512
PARTITION_START = 2048 * SECTOR
MIB = 1 << 20

#: Needed before the root disk is there / after the guest is up.
EARLY = ('virtio_blk',)
LATE = ('button', 'evdev', 'ata_piix', 'sr_mod', 'isofs')

GRUB_CONFIG = """\
set root=(hd0,msdos1)
linux /boot/vmlinuz root=/dev/vda1 console=ttyS0 loglevel=4 panic=5 \
tsc=unstable no_timer_check
initrd /boot/initrd
boot
"""

INITRD_INIT = """\
#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
for module in /modules/*; do /bin/busybox insmod "$module"; done
n=0
while [ ! -b /dev/vda1 ] && [ "$n" -lt 100 ]; do
    /bin/busybox sleep 0.1
    n=$((n + 1))
done
/bin/busybox mount -t ext4 /dev/vda1 /root ||
    echo 'GUEST-FAILED no root disk' >/dev/ttyS0
/bin/busybox umount /dev
exec /bin/busybox switch_root /root /sbin/init
"""

INIT = """\
#!/bin/sh
PATH=/bin:/sbin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
exec </dev/null >/dev/ttyS0 2>&1
i=0
while [ $i -lt 12 ]; do
    echo "guest: line $i of its console"
    i=$((i + 1))
done
boots=$(($(cat /var/boots 2>/dev/null || echo 0) + 1))
mark=$(head -c 4 /dev/urandom | hexdump -e '4/1 "%02x"')
if echo $boots >/var/boots && echo $mark >>/var/marks && sync; then
    for file in /usr/share/data/*; do
        dd if=$file of=/dev/null bs=4096 count=4 2>/dev/null ||
            echo "GUEST-FAILED cannot read $file"
    done
    echo "GUEST-UP boots=$boots marks=$(tr '\\n' , </var/marks | sed 's/,$//')"
else
    echo 'GUEST-FAILED cannot write its disk'
fi
for module in /lib/modules/*; do insmod $module; done
for event in /dev/input/event*; do
    (head -c 24 $event >/dev/null && echo 'GUEST-DOWN' && sync &&
        mount -o remount,ro / ; poweroff -f) &
done
for port in /sys/class/virtio-ports/*; do
    [ "$(cat $port/name 2>/dev/null)" = org.qemu.guest_agent.0 ] || continue
    qemu-ga --daemonize --method=virtio-serial --path=/dev/${port##*/} \
        --statedir=/run --pidfile=/run/qemu-ga.pid --logfile=/run/qemu-ga.log \
        --fsfreeze-hook=/etc/fsfreeze-hook &&
        echo 'GUEST-AGENT'
done
echo 'GUEST-READY'
n=0
while [ ! -b /dev/sr0 ] && [ $n -lt 10 ]; do sleep 0.2; n=$((n + 1)); done
if [ -b /dev/sr0 ] && mount -t iso9660 -o ro /dev/sr0 /mnt 2>/dev/null; then
    data=/mnt/openstack/latest/user_data
    if [ -e $data ]; then
        sh $data
        echo "GUEST-DATA status=$?"
    fi
fi
while :; do sleep 1000; done
"""

FREEZE_HOOK = """\
#!/bin/sh
echo "GUEST-FILES $1" >/dev/console
"""


@dataclasses.dataclass(frozen=True)
class Guest:
    """What a guest image holds."""

    name: str
    virtual_bytes: int
    data_bytes: int
    files: int


GUESTS = {
    guest.name: guest
    for guest in (
        Guest('small', 256 * MIB, 64 * MIB, 8),
        Guest('big', 2048 * MIB, 580 * MIB, 40),
    )
}


def image(name: str) -> pathlib.Path:
    """The raw image of one guest; made if it is not there yet."""
    guest = GUESTS[name]
    recipe = hashlib.sha256(pathlib.Path(__file__).read_bytes())
    recipe.update(repr(guest).encode())
    recipe.update(kernel().name.encode())
    folder = settings.SHARED / 'guests'
    target = folder / f'{name}-{recipe.hexdigest()[:16]}.raw'
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            made = make(guest, pathlib.Path(work))
            made.rename(target)
    return target


def kernel() -> pathlib.Path:
    return next((SOURCE / 'boot').glob('vmlinuz-*'))


def make(guest: Guest, work: pathlib.Path) -> pathlib.Path:
    """Build one image in a folder of its own."""
    tree = work / 'tree'
    _fill_tree(tree, guest)
    _make_initrd(work / 'initrd', tree / 'boot/initrd')
    disk = work / 'disk.raw'
    with disk.open('wb') as stream:
        stream.truncate(guest.virtual_bytes)
    blocks = (guest.virtual_bytes - PARTITION_START) // 4096
    _run(
        'mke2fs',
        *('-q', '-F', '-t', 'ext4', '-b', '4096', '-m', '0'),
        # GRUB reads no checksum seed and no orphan file.
        *('-O', '^metadata_csum,^metadata_csum_seed,^orphan_file'),
        *('-E', f'offset={PARTITION_START},lazy_itable_init=1'),
        *('-d', str(tree), str(disk), str(blocks)),
    )
    _make_bootable(disk, work)
    return disk


def _run(*command: str) -> str:
    return subprocess.run(
        command, check=True, text=True, stdout=subprocess.PIPE
    ).stdout


def _fill_tree(tree: pathlib.Path, guest: Guest) -> None:
    for name in (
        *('bin', 'sbin', 'boot', 'dev', 'proc', 'sys', 'mnt', 'var', 'tmp'),
        *('etc', 'lib/modules', 'run', 'usr/share/data'),
    ):
        (tree / name).mkdir(parents=True)
    shutil.copy(kernel(), tree / 'boot/vmlinuz')
    busybox = pathlib.Path('/usr/bin/busybox')
    shutil.copy(busybox, tree / 'bin/busybox')
    for applet in _run(str(busybox), '--list').split():
        if applet != 'busybox':
            (tree / 'bin' / applet).symlink_to('busybox')
    _script(tree / 'sbin/init', INIT)
    _script(tree / 'etc/fsfreeze-hook', FREEZE_HOOK)
    _program(pathlib.Path('/usr/sbin/qemu-ga'), tree)
    _modules(LATE, tree / 'lib/modules')
    _fill_data(tree / 'usr/share/data', guest)


def _fill_data(folder: pathlib.Path, guest: Guest) -> None:
    """Data as an image has it: about half of it compresses, by half."""
    source = random.Random(guest.name)
    size = guest.data_bytes // guest.files
    for index in range(guest.files):
        with (folder / f'{index:03}').open('wb') as stream:
            for _ in range(size // MIB):
                half = source.randbytes(MIB // 2)
                stream.write(half)
                stream.write(half[: MIB // 4].hex().encode())


def _script(path: pathlib.Path, text: str) -> None:
    path.write_text(text, encoding='ascii')
    path.chmod(0o755)


def _program(path: pathlib.Path, tree: pathlib.Path) -> None:
    """Copy a program, and the libraries that it is linked with."""
    shutil.copy(path, tree / 'sbin')
    for word in _run('ldd', str(path)).split():
        if word.startswith('/'):
            target = tree / word.lstrip('/')
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(word, target)


def _modules(names: tuple[str, ...], target: pathlib.Path) -> None:
    """Unpack modules and what they need, numbered in loading order."""
    folder = next((SOURCE / 'usr/lib/modules').iterdir())
    found = {
        path.name.partition('.')[0].replace('-', '_'): path
        for path in folder.rglob('*.ko*')
    }
    order: list[str] = []

    def need(name: str) -> None:
        name = name.replace('-', '_')
        if name in order or name not in found:
            return
        path = str(found[name])
        for other in _run('modinfo', '-F', 'depends', path).strip().split(','):
            if other:
                need(other)
        order.append(name)

    for name in names:
        need(name)
    for index, name in enumerate(order):
        packed = found[name].read_bytes()
        plain = (
            lzma.decompress(packed) if found[name].suffix == '.xz' else packed
        )
        (target / f'{index:02}-{name}.ko').write_bytes(plain)


def _make_initrd(work: pathlib.Path, target: pathlib.Path) -> None:
    for name in ('bin', 'dev', 'modules', 'root'):
        (work / name).mkdir(parents=True)
    shutil.copy('/usr/bin/busybox', work / 'bin/busybox')
    _script(work / 'init', INITRD_INIT)
    _modules(EARLY, work / 'modules')
    os.mknod(work / 'dev/console', 0o600 | stat.S_IFCHR, os.makedev(5, 1))
    names = sorted(str(p.relative_to(work)) for p in work.rglob('*'))
    with target.open('wb') as stream:
        subprocess.run(
            ['cpio', '--quiet', '-o', '-H', 'newc'],
            check=True,
            cwd=work,
            input='\n'.join(names).encode(),
            stdout=stream,
        )


def _make_bootable(disk: pathlib.Path, work: pathlib.Path) -> None:
    """GRUB's boot sector, partition table and core image, by hand."""
    config = work / 'grub.cfg'
    config.write_text(GRUB_CONFIG, encoding='ascii')
    core = work / 'core.img'
    _run(
        'grub-mkimage',
        *('-O', 'i386-pc', '-d', str(GRUB), '-c', str(config)),
        *('-p', '(hd0,msdos1)/boot', '-o', str(core)),
        *('biosdisk', 'part_msdos', 'ext2', 'linux'),
    )
    code = core.read_bytes()
    if len(code) > PARTITION_START - SECTOR:
        raise ValueError('the core image does not fit before the partition')
    with disk.open('r+b') as stream:
        size = stream.seek(0, os.SEEK_END)
        sector = bytearray((GRUB / 'boot.img').read_bytes()[:440])
        sector += struct.pack('<IH', 0x4C415A59, 0)
        first = PARTITION_START // SECTOR
        sector += struct.pack(
            '<B3sB3sII',
            *(0x80, b'\xfe\xff\xff', 0x83, b'\xfe\xff\xff'),
            *(first, size // SECTOR - first),
        )
        sector += bytes(48) + b'\x55\xaa'
        stream.seek(0)
        stream.write(sector)
        stream.write(code)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('name', choices=GUESTS)
    print(image(parser.parse_args().name))
