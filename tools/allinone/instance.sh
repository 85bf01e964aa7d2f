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

# Instances: copy-on-write views of the root, each in namespaces of its own.
# What needs a plain file system (O_DIRECT, sparse files, databases) is a
# folder of the cache, bound into the view. Sourced by root.sh.

# Folders of the instance that are plain folders of the host's file system.
readonly PLAIN='/src /tmp /var/tmp /var/lib/ceph /var/lib/mysql /var/lib/rabbitmq
/var/lib/glance /var/lib/nova /var/lib/lazyimage /var/lib/keystone
/var/lib/placement /var/log /root'

# Makes the folders of instance $1; its view is not mounted yet.
instance_prepare() {
    local dir=$INSTANCES/$1 folder
    mkdir -p "$dir"/{view,plain}
    printf '%s\n' "$LAYER" >"$dir/layer"
    if have_overlay; then
        mkdir -p "$dir"/{upper,upper.work}
    else
        cp -a --reflink=auto "$LAYER/." "$dir/view"
    fi
    for folder in $PLAIN; do
        mkdir -p "$dir/plain$folder"
    done
    chmod 1777 "$dir"/plain/{,var/}tmp
    chmod 700 "$dir/plain/root"
}

# Sets the variables that enter.sh takes, for instance $1.
instance_entry() {
    local dir=$INSTANCES/$1 folder
    export ENTER_ROOT=$dir/view ENTER_LOWER='' ENTER_UPPER=$dir/upper
    export ENTER_NET=private ENTER_PID_FILE=$dir/pid
    ENTER_LOWER=''
    ! have_overlay || ENTER_LOWER=$(stack_of "$(cat "$dir/layer")")
    export ENTER_BINDS="$SHARED /var/cache/lazyimage"
    for folder in $PLAIN; do
        ENTER_BINDS+=$'\n'"$dir/plain$folder $folder"
    done
}

# The environment of a command inside.
inside_environment() {
    INSIDE=(/usr/bin/env -i "PATH=$INSIDE_PATH" HOME=/root LANG=C.UTF-8
        "TERM=${TERM:-dumb}" CARGO_HOME=/var/cache/lazyimage/cargo
        CARGO_TARGET_DIR=/var/cache/lazyimage/target CARGO_NET_OFFLINE=true
        CARGO_BUILD_JOBS=2 PYTHONPYCACHEPREFIX=/tmp/pycache)
    local name
    while read -r name; do
        INSIDE+=("$name=${!name}")
    done < <(compgen -e | grep -E '^(CI|LAZYIMAGE_.*|IMAGE|ONLY)$' |
        grep -vE '^LAZYIMAGE_(CACHE|MIRROR)$')
}

readonly NAMESPACES='--mount --propagation private --pid --net --uts --ipc
--fork --kill-child'

instance_run() {
    local keep='' name=run-$$ layers='' status=0
    while [ $# -gt 0 ]; do
        case $1 in
            --keep) keep=yes ;;
            --base) layers=base ;;
            --name)
                name=$2
                shift
                ;;
            --)
                shift
                break
                ;;
            *) break ;;
        esac
        shift
    done
    [ $# -gt 0 ] || die 'run: no command given'
    need_layers $layers
    ! instance_alive "$name" || die "instance $name is running already"
    remove_tree "${INSTANCES:?}/$name"
    instance_prepare "$name"
    copy_checkout "$INSTANCES/$name/plain/src"
    instance_entry "$name"
    inside_environment
    # Not in the foreground: whoever ends this script, by a key or a signal,
    # ends what runs in the namespaces too.
    # shellcheck disable=SC2086
    unshare $NAMESPACES bash "$TOOLS/enter.sh" "${INSIDE[@]}" \
        /bin/bash /src/tools/allinone/init.sh "$name" run \
        /bin/bash -c 'cd /src && exec "$@"' command "$@" <&0 &
    local unshared=$!
    # shellcheck disable=SC2064
    trap "kill -KILL $unshared" INT TERM HUP
    wait "$unshared" || status=$?
    trap - INT TERM HUP
    if [ -n "$keep" ]; then
        say "kept in $INSTANCES/$name"
    else
        remove_tree "${INSTANCES:?}/$name"
    fi
    return "$status"
}

# True if process 1 of instance $1 lives; its number is then in $PID.
instance_alive() {
    local file=$INSTANCES/$1/pid start rest
    local -a fields
    [ -s "$file" ] && read -r PID start <"$file" || return 1
    read -r rest 2>/dev/null <"/proc/$PID/stat" || return 1
    read -r -a fields <<<"${rest##*) }"
    [ "${fields[19]}" = "$start" ] && [ "${fields[0]}" != Z ]
}

instance_start() {
    local name=$1 dir=$INSTANCES/$1 tries
    if instance_alive "$name"; then
        say "instance $name is running already, with the checkout as it was"
        return
    fi
    need_layers
    instance_refresh "$dir"
    instance_prepare "$name"
    copy_checkout "$dir/plain/src"
    instance_entry "$name"
    inside_environment
    rm -f "$dir/pid"
    # shellcheck disable=SC2086
    setsid unshare $NAMESPACES bash "$TOOLS/enter.sh" "${INSIDE[@]}" \
        /bin/bash /src/tools/allinone/init.sh "$name" wait \
        </dev/null >"$dir/log" 2>&1 &
    for ((tries = 0; tries < 100; tries++)); do
        if instance_alive "$name" && [ "$(instance_hostname)" = "$name" ]
        then return; fi
        sleep 0.1
    done
    cat "$dir/log" >&2
    die "instance $name did not start"
}

# A stopped instance that stands on other layers: what its services keep stays
# if the users' numbers do, that is with the same Debian below.
instance_refresh() {
    local dir=$1 old
    [ -s "$dir/layer" ] || return 0
    old=$(cat "$dir/layer")
    [ "$old" != "$LAYER" ] || return 0
    if [ "$(base_of "$old")" = "$(base_of "$LAYER")" ]; then
        say 'the checkout has changed; databases, images and servers stay'
        remove_tree "$dir"/{upper,upper.work,view}
    else
        say 'the recipe of the root has changed; starting afresh'
        remove_tree "$dir"
    fi
}

# The Debian layer below layer $1, as it was recorded.
base_of() {
    local stack
    stack=$(cat "$1.below" 2>/dev/null) || return 0
    printf '%s' "${stack##*:}"
}

instance_hostname() {
    nsenter --target "$PID" --uts cat /proc/sys/kernel/hostname 2>/dev/null ||
        true
}

instance_exec() {
    local name=$1
    shift
    [ "${1:-}" != -- ] || shift
    instance_alive "$name" || die "instance $name is not running"
    inside_environment
    nsenter --target "$PID" --mount --pid --net --uts --ipc --wdns=/src \
        "${INSIDE[@]}" "$@"
}

# Commands may come from a pipe too: such a shell reads BASH_ENV, no rcfile.
instance_shell() {
    local rc=/src/tools/allinone/shellrc
    instance_exec "$1" env "BASH_ENV=$rc" /bin/bash --rcfile "$rc"
}

instance_stop() {
    local name=$1 tries
    if ! instance_alive "$name"; then
        say "instance $name is not running"
        return
    fi
    kill -TERM "$PID"
    for ((tries = 0; tries < 150; tries++)); do
        instance_alive "$name" || break
        [ "$tries" -ne 100 ] || kill -KILL "$PID" 2>/dev/null || true
        sleep 0.1
    done
    ! instance_alive "$name" || die "instance $name did not end"
    rm -f "$INSTANCES/$name/pid"
}

instance_remove() {
    ! instance_alive "$1" || instance_stop "$1"
    remove_tree "${INSTANCES:?}/$1"
}

list_all() {
    local entry state
    for entry in "$INSTANCES"/*/; do
        [ -d "$entry" ] || continue
        state=stopped
        ! instance_alive "$(basename "$entry")" || state="running as $PID"
        printf '%-10s instance %s, %s\n' "$(du -sh "$entry" | cut -f1)" \
            "$(basename "$entry")" "$state"
    done
    # shellcheck disable=SC2153
    for entry in "$LAYERS"/*.complete; do
        [ -e "$entry" ] || continue
        printf '%-10s layer %s\n' "$(du -sh "${entry%.complete}" | cut -f1)" \
            "$(basename "$entry" .complete)"
    done
    printf '%-10s downloads, guests, build results\n' \
        "$(du -sh "$SHARED" | cut -f1)"
}

clean_all() {
    local entry
    for entry in "$INSTANCES"/*/; do
        [ -d "$entry" ] || continue
        instance_remove "$(basename "$entry")"
    done
    if grep -qsF " $CACHE/" /proc/[0-9]*/mounts; then
        die "$CACHE: something is mounted there still; not deleted"
    fi
    rm -rf --one-file-system "$CACHE"
    say "deleted $CACHE"
}
