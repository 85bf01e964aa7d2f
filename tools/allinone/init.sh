#!/bin/bash
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

# Process 1 of an instance. "init.sh run COMMAND...": runs it and ends with
# its status; "init.sh wait": reaps until TERM.
set -u
name=$1
mode=$2
shift 2

printf '%s' "$name" >/proc/sys/kernel/hostname
printf '127.0.0.1 localhost %s\n::1 localhost\n' "$name" >/etc/hosts
# The view is shared with nobody: a mount made in here must reach QEMU's own
# namespace, as it does on a host whose root is shared.
mount --make-rshared /
[ -e /sys/fs/fuse/connections ] &&
    mount -t fusectl fusectl /sys/fs/fuse/connections 2>/dev/null

# What only the wheel has, for a checkout that is run in place.
cp /usr/share/lazyimage-module/*.so /src/nova_lazyimage/ 2>/dev/null

if [ "$mode" = run ]; then
    "$@" <&0 &
    child=$!
    trap 'kill -TERM "$child" 2>/dev/null' TERM INT HUP
    while :; do
        wait "$child"
        status=$?
        kill -0 "$child" 2>/dev/null || break
    done
    exit "$status"
fi

trap 'exit 0' TERM
while :; do
    sleep 1000 &
    wait $!
done
