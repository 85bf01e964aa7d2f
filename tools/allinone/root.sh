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

# The all-in-one's private root: builds it, runs commands in it, removes it.
# See "root.sh help".
set -euo pipefail

TOOLS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CHECKOUT=$(cd "$TOOLS/../.." && pwd)
CACHE=${LAZYIMAGE_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/lazyimage}
SHARED=$CACHE/shared
INSTANCES=$CACHE/instances
INSIDE_PATH=/opt/openstack/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
umask 022

# shellcheck source=tools/allinone/host.sh
. "$TOOLS/host.sh"
# shellcheck source=tools/allinone/layers.sh
. "$TOOLS/layers.sh"
# shellcheck source=tools/allinone/instance.sh
. "$TOOLS/instance.sh"

usage() {
    cat <<END
usage: root.sh COMMAND

  build [base]              build the root's layers
  run [--keep] [--name N] [--base] -- COMMAND...
                            run COMMAND in a fresh instance, with the
                            checkout's copy at /src; its exit status is this
                            one's; the instance is removed unless --keep
  kernel                    fetch Debian 12's kernel for make soak, once
  start NAME                start an instance that stays
  exec NAME -- COMMAND...   run COMMAND in a started instance
  shell NAME                a shell in it, with OS_* set
  stop NAME                 end it; its state stays
  remove NAME               end it and delete its state
  list                      instances and layers, with their sizes
  clean                     end every instance, delete the whole cache folder

Everything is below $CACHE.
END
}

main() {
    local command=${1:-help}
    case $command in
        help | --help | -h)
            usage
            return
            ;;
    esac
    [ "$(uname -m)" = x86_64 ] || die 'runs on x86_64 only so far'
    become_root "$@"
    mkdir -p "$CACHE" "$SHARED"
    shift
    case $command in
        build) need_layers "$@" ;;
        run) instance_run "$@" ;;
        kernel) need_old_kernel ;;
        start) instance_start "$@" ;;
        exec) instance_exec "$@" ;;
        shell) instance_shell "$@" ;;
        stop) instance_stop "$@" ;;
        remove) instance_remove "$@" ;;
        list) list_all ;;
        clean) clean_all ;;
        *)
            usage >&2
            return 2
            ;;
    esac
}

main "$@"
