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

# Fetches the kernel of Debian 12, which has no FUSE RESEND, into the cache.
# $1 is the host's Debian mirror, if it has one. Runs inside, as root, with
# the host's network.
set -eux
work=$(mktemp -d)
mkdir -p "$work/lists/partial" /var/cache/lazyimage/kernels
printf 'deb [signed-by=%s] %s bookworm main\n' \
    /usr/share/keyrings/debian-archive-keyring.gpg \
    "${1:-http://deb.debian.org/debian}" >"$work/sources.list"
apt() {
    "$1" -o "Dir::Etc::SourceList=$work/sources.list" \
        -o Dir::Etc::SourceParts=/dev/null \
        -o "Dir::State::Lists=$work/lists" \
        -o "Dir::Cache::pkgcache=" -o "Dir::Cache::srcpkgcache=" "${@:2}"
}
apt apt-get update
kernel=$(apt apt-cache depends --important linux-image-amd64 |
    awk '$1 == "Depends:" && $2 ~ /^linux-image-6/ { print $2; exit }')
cd "$work"
apt apt-get download "$kernel"
mv "$work"/linux-image-*.deb /var/cache/lazyimage/kernels/
rm -rf "$work"
