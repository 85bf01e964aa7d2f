#!/usr/bin/env bash
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

# The first process of a new mount, pid, uts and ipc namespace (and net, if
# private): lays the root's file systems, leaves the host's tree by
# pivot_root and becomes the command given. Nothing here outlives the
# namespace. Called by layers.sh and instance.sh with
#
#   ENTER_ROOT      where the view is mounted (private to the namespace)
#   ENTER_LOWER     layers for overlayfs, uppermost first; empty: ENTER_ROOT
#                   is the tree itself
#   ENTER_UPPER     the writable layer; its work folder is ENTER_UPPER.work
#   ENTER_BINDS     lines "source target"
#   ENTER_NET       "private": set up lo
#   ENTER_PID_FILE  gets the host's number of this process and its start time
set -euo pipefail

mount --make-rprivate /

if [ -n "${ENTER_PID_FILE:-}" ]; then
    # This is the host's /proc still, so these are the host's numbers.
    read -r stat </proc/self/stat
    read -r -a fields <<<"${stat##*) }"
    printf '%s %s\n' "${stat%% *}" "${fields[19]}" >"$ENTER_PID_FILE"
fi

root=$ENTER_ROOT
if [ -n "$ENTER_LOWER" ]; then
    mount -t overlay overlay "$root" -o \
        "lowerdir=$ENTER_LOWER,upperdir=$ENTER_UPPER,workdir=$ENTER_UPPER.work"
else
    mount --bind "$root" "$root"
fi

mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
mount -t sysfs -o nosuid,nodev,noexec,ro sysfs "$root/sys" 2>/dev/null ||
    mount -t tmpfs -o nosuid,nodev,noexec,mode=755 tmpfs "$root/sys"

# Nodes of its own: a bound node would be the host's, owner and mode too.
dev=$root/dev
mount -t tmpfs -o nosuid,mode=755 tmpfs "$dev"
node() {
    local name=$1 mode=$2
    shift 2
    mknod "$dev/$name" "$@"
    chmod "$mode" "$dev/$name"
}
node null 666 c 1 3
node zero 666 c 1 5
node full 666 c 1 7
node random 666 c 1 8
node urandom 666 c 1 9
node tty 666 c 5 0
node fuse 666 c 10 229
# Block devices over files, for tests with file systems; where they may be had.
if node loop-control 660 c 10 237 2>/dev/null; then
    for n in {0..31}; do
        node "loop$n" 660 b 7 "$n" 2>/dev/null || break
    done
fi
if [ -e /dev/kvm ]; then
    node kvm 660 c 10 232
    chgrp "$(awk -F: '$1 == "kvm" { print $3 }' "$root/etc/group" |
        grep . || echo 0)" "$dev/kvm"
fi
mkdir "$dev/pts" "$dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5,nosuid,noexec \
    devpts "$dev/pts"
mount -t tmpfs -o nosuid,nodev,mode=1777 tmpfs "$dev/shm"
ln -s pts/ptmx "$dev/ptmx"
ln -s /proc/self/fd "$dev/fd"
ln -s fd/0 "$dev/stdin"
ln -s fd/1 "$dev/stdout"
ln -s fd/2 "$dev/stderr"
mount -t tmpfs -o nosuid,nodev,mode=755 tmpfs "$root/run"
mkdir -m 1777 "$root/run/lock"

while read -r source target; do
    [ -n "$source" ] || continue
    mkdir -p "$root$target"
    mount --bind "$source" "$root$target"
done <<<"$ENTER_BINDS"

cd "$root"
pivot_root . .
umount -l .
cd /
if [ "$ENTER_NET" = private ]; then
    ip link set lo up
fi
unset "${!ENTER_@}"
exec "$@"
