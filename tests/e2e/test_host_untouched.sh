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

# Compares the host before, while and after the all-in-one runs: packages,
# /etc, listeners, mounts, processes of its own. Runs on the host, as root;
# "make test" runs it before the stages, which are inside the root.
set -euo pipefail

tree=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
root=$tree/tools/allinone/root.sh
name=untouched-$$
work=$(mktemp -d)
passed=0
failed=0

finish() {
    "$root" remove "$name" >/dev/null 2>&1 || true
    rm -rf "$work"
}
trap finish EXIT

# What a host must not notice, one file a question.
observe() {
    local into=$work/$1
    mkdir -p "$into"
    if command -v dpkg-query >/dev/null; then
        # shellcheck disable=SC2016
        dpkg-query -W -f '${Package} ${Version} ${Status}\n' >"$into/packages"
    fi
    find /etc -xdev -type f -print0 | sort -z |
        xargs -0 sha256sum >"$into/etc" 2>/dev/null || true
    find /etc -xdev -printf '%p %M %U %G %l\n' | sort >"$into/etc-modes"
    # State 0A is LISTEN; the last column kept is the socket's address.
    cat /proc/net/tcp /proc/net/tcp6 2>/dev/null |
        awk '$4 == "0A" { print $2 }' | sort >"$into/listeners"
    awk '{ print $1, $2, $3 }' /proc/self/mounts | sort >"$into/mounts"
    stat -c '%n %F %a %u %g %t %T' /dev/ptmx /dev/fuse /dev/null /dev/kvm \
        /dev/pts/ptmx 2>/dev/null >"$into/nodes" || true
    awk -F: '{ print $1 }' /etc/passwd /etc/group | sort >"$into/users"
}

compare() {
    local question
    for question in "$work/before"/*; do
        question=$(basename "$question")
        if diff -u "$work/before/$question" "$work/$1/$question"; then
            passed=$((passed + 1))
        else
            echo "FAILED: the host's $question differ $1 the all-in-one"
            failed=$((failed + 1))
        fi
    done
}

"$root" build
observe before
"$root" start "$name"
"$root" exec "$name" -- /bin/bash /src/tools/allinone/cloud.sh up \
    --flavour "${LAZYIMAGE_FLAVOUR:-lazy}"
observe during
compare during
"$root" exec "$name" -- /bin/bash /src/tools/allinone/cloud.sh down
"$root" stop "$name"
observe after
compare after

cache=${LAZYIMAGE_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/lazyimage}
if grep -lsF "$cache/instances/$name" /proc/[0-9]*/mounts; then
    echo 'FAILED: a process still has a mount of the instance'
    failed=$((failed + 1))
else
    passed=$((passed + 1))
fi
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
