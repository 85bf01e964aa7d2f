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
"""A machine with an older kernel, to run a command of this root in.

The kernel is a Debian package in the cache (``tools/allinone/root.sh kernel``
fetches it), the file system this very root, read-only over 9p, with a disk of
the machine's own for what wants O_DIRECT. It prints to its console; the last
line says how the command ended.
"""

import contextlib
import os
import pathlib
import re
import shutil
import subprocess

KERNELS = pathlib.Path('/var/cache/lazyimage/kernels')
ENDED = re.compile(r'^COMMAND-ENDED (\d+)', re.MULTILINE)
MODULES = ('virtio_pci', 'virtio_blk', '9pnet_virtio', '9p', 'ext4', 'fuse')
DISK_BYTES = 2 * 1024**3

# In the initramfs: busybox, modules, and this.
INIT = """\
#!/bin/busybox sh
b=/bin/busybox
$b mkdir -p /dev /proc /sys /root
$b mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
$b mount -t proc proc /proc
for module in /modules/*; do $b insmod "$module"; done
$b mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=262144,cache=loose \
    root /root
for folder in dev proc sys; do $b mount --move /$folder /root/$folder \
    2>/dev/null || $b mount -t sysfs sys /root/sys; done
$b mount -t tmpfs tmpfs /root/run
$b mount -t tmpfs tmpfs /root/tmp
$b mount -t ext4 /root/dev/vda /root/var/tmp
exec $b chroot /root /bin/bash -c '
    export PATH=/opt/test/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
    export LANG=C.UTF-8 PYTHONDONTWRITEBYTECODE=1
    ip link set lo up 2>/dev/null
    echo "KERNEL $(uname -r)"
    cd /src
    COMMAND
    echo "COMMAND-ENDED $?"
    echo o >/proc/sysrq-trigger
    sleep 60
'
"""


class Machine:
    """One machine, for one command.

    :param package: a kernel's .deb
    """

    def __init__(self, package, folder):
        self.folder = folder
        unpacked = folder / 'kernel'
        subprocess.run(['dpkg-deb', '-x', package, unpacked], check=True)
        self.kernel = next((unpacked / 'boot').glob('vmlinuz-*'))
        self.modules = next((unpacked / 'lib/modules').iterdir())

    def run(self, command, seconds):
        """The command's status and what was on the console.

        :param command: a line of shell, without single quotes
        """
        disk = self.folder / 'disk.raw'
        console = self.folder / 'console'
        with disk.open('wb') as file:
            file.truncate(DISK_BYTES)
        subprocess.run(['mke2fs', '-q', '-F', '-t', 'ext4', disk], check=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(
                [
                    'qemu-system-x86_64',
                    *('-nodefaults', '-display', 'none', '-no-reboot'),
                    *('-serial', f'file:{console}', '-m', '1536', '-smp', '2'),
                    *accelerator(),
                    *('-kernel', self.kernel),
                    *('-initrd', self._initramfs(command)),
                    '-append',
                    'console=ttyS0 loglevel=4 panic=-1',
                    *(
                        '-drive',
                        f'file={disk},format=raw,if=virtio,cache=none',
                    ),
                    '-virtfs',
                    'local,path=/,mount_tag=root,security_model=none,'
                    'readonly=on,multidevs=remap',
                ],
                stdin=subprocess.DEVNULL,
                timeout=seconds,
            )
        text = console.read_text(errors='replace').replace('\r', '')
        ended = ENDED.search(text)
        assert ended, f'the command did not end:\n{text[-4000:]}'
        return int(ended[1]), text

    def _initramfs(self, command):
        tree = self.folder / 'initramfs'
        shutil.rmtree(tree, ignore_errors=True)
        for name in ('bin', 'modules'):
            (tree / name).mkdir(parents=True)
        shutil.copy('/usr/bin/busybox', tree / 'bin/busybox')
        for number, module in enumerate(self._in_order()):
            shutil.copy(module, tree / f'modules/{number:02}-{module.name}')
        init = tree / 'init'
        init.write_text(INIT.replace('COMMAND\n', f'{command}\n', 1))
        init.chmod(0o755)
        names = sorted(str(p.relative_to(tree)) for p in tree.rglob('*'))
        target = self.folder / 'initramfs.cpio'
        with target.open('wb') as stream:
            subprocess.run(
                ['cpio', '--quiet', '-o', '-H', 'newc'],
                cwd=tree,
                input='\n'.join(names).encode(),
                stdout=stream,
                check=True,
            )
        return target

    def _in_order(self):
        """Modules and what they need, before who needs it."""
        found = {
            path.name.removesuffix('.ko').replace('-', '_'): path
            for path in self.modules.rglob('*.ko')
        }
        order = []

        def need(name):
            if name not in found or found[name] in order:
                return
            said = subprocess.run(
                ['modinfo', '-F', 'depends', found[name]],
                check=True,
                capture_output=True,
                text=True,
            ).stdout.strip()
            for other in said.split(','):
                need(other.replace('-', '_'))
            # Not named, for it may be built in: ext4's checksum.
            if name == 'ext4':
                need('crc32c_generic')
            order.append(found[name])

        for name in MODULES:
            need(name)
        return order


def accelerator():
    """Software, unless told: a /dev/kvm may be there and not work."""
    chosen = os.environ.get('LAZYIMAGE_SOAK_ACCELERATOR', 'tcg')
    return ['-accel', chosen, '-cpu', 'host' if chosen == 'kvm' else 'max']


def package(version):
    """The newest kernel of that version in the cache, or nothing."""
    found = sorted(KERNELS.glob(f'linux-image-{version}.*.deb'))
    return found[-1] if found else None
