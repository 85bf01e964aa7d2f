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

# "make demo" and "make demo-down": the plan first, then the all-in-one and
# the show in it. LAZYIMAGE_FLAVOUR=stock shows it without our drivers,
# LAZYIMAGE_ENGINE=s3 with chunks on a Ceph object gateway.
set -euo pipefail

tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$tools/root.sh
flavour=${LAZYIMAGE_FLAVOUR:-lazy}
engine=${LAZYIMAGE_ENGINE:-file}
cache=${LAZYIMAGE_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/lazyimage}

down() {
    "$root" exec demo -- /bin/bash /src/tools/allinone/cloud.sh down ||
        echo 'demo: the services did not stop cleanly' >&2
    "$root" stop demo
}

plan() {
    local cost='nothing to download'
    if ! compgen -G "$cache/layers/debian-*.complete" >/dev/null; then
        cost='about 650 MB to download (Debian packages, Python packages,
     crates) and 4 GB of disk, once'
    elif [ ! -d "$cache/instances/demo" ]; then
        cost='about 1 GB of disk'
    fi
    local beside=''
    [ "$engine" = file ] || beside='
     Chunks go to a one-node Ceph with its object gateway.'
    cat <<END
This is what happens now, on this machine but without touching it:

  1. A Debian 13 of its own is made in $cache
     (reused if it is there already).
  2. In private mount, pid, network, uts and ipc namespaces it starts
     MariaDB, RabbitMQ, libvirt, Keystone, Placement, Glance, Nova, and
     lazyimage's conductor and agent, each under its own user.$beside
  3. An image of 2 GB virtual size is uploaded, a server boots from it, the
     guest writes, the running server becomes an image, and a second server
     from that image proves that it carries the first one's writes.
  4. The cloud stays up: "make demo-shell" enters it, "make demo-down" stops
     it, "make demo-clean" removes everything.

Cost: $cost.
     Needs root (or sudo), 3 GB of memory and some minutes the first time.

END
}

main() {
    local image=''
    case ${1:-} in
        --down)
            down
            return
            ;;
        --image)
            image=$(readlink -e -- "$2") || {
                echo "demo: no image at $2" >&2
                return 1
            }
            ;;
    esac
    plan
    "$root" start demo
    local -a show=(/opt/openstack/bin/python -m cloud.demo
        --flavour "$flavour")
    if [ -n "$image" ]; then
        "$root" exec demo -- cp --sparse=always /dev/stdin \
            /var/tmp/given-image <"$image"
        show+=(--image /var/tmp/given-image)
    fi
    echo "demo: starting the services"
    "$root" exec demo -- /bin/bash /src/tools/allinone/cloud.sh up \
        --flavour "$flavour" --engine "$engine"
    "$root" exec demo -- env PYTHONPATH=/src/tools/allinone "${show[@]}"
    cat <<'END'

The cloud is up. "make demo-shell" enters it, "make demo-down" stops it.
END
}

main "$@"
