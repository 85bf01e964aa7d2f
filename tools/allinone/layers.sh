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

# The layers of the root, each in a folder named by the hash of its recipe:
# Debian, the virtual environments, the wheel of the checkout. A layer is
# built under a temporary name and renamed when complete. With overlayfs a
# layer holds only what it adds; without, it is a full copy of the layer
# below. Sourced by root.sh after host.sh.

readonly LAYERS=$CACHE/layers

hash_of() { cat -- "$@" | sha256sum | cut -c1-16; }

# Whether overlayfs works with the cache's file system as upper layer.
have_overlay() {
    if [ -z "${OVERLAY:-}" ]; then
        local try=$CACHE/.overlay
        mkdir -p "$try"/{lower,upper,work,view}
        OVERLAY=no
        [ -n "${LAZYIMAGE_NO_OVERLAY:-}" ] || ! unshare --mount \
            --propagation private mount -t overlay overlay "$try/view" -o \
            "lowerdir=$try/lower,upperdir=$try/upper,workdir=$try/work" \
            2>/dev/null || OVERLAY=yes
        rm -rf "$try"
    fi
    [ "$OVERLAY" = yes ]
}

# Layers below and including $1, uppermost first, colon-separated.
stack_of() {
    local list=$1
    have_overlay && [ -s "$1.below" ] && list+=:$(cat "$1.below")
    printf '%s' "$list"
}

# Runs a command in a view of layer $1 with the host's network and waits.
# $2 is the folder of the writable layer.
in_build() {
    local below=$1 upper=$2 lower='' view=$2
    shift 2
    if have_overlay && [ -n "$below" ]; then
        lower=$(stack_of "$below")
        view=$upper.view
        mkdir -p "$view" "$upper.work"
    fi
    mapfile -t lent < <(host_environment)
    mkdir -p "$SHARED"
    ENTER_ROOT=$view ENTER_LOWER=$lower ENTER_UPPER=$upper ENTER_NET=host \
        ENTER_BINDS="$TOOLS /run/allinone
$SHARED /var/cache/lazyimage
${SOURCE:-$TOOLS} /run/source" \
        unshare --mount --propagation private --uts --ipc --pid --fork \
        --kill-child bash "$TOOLS/enter.sh" \
        /usr/bin/env -i "PATH=$INSIDE_PATH" HOME=/root LANG=C.UTF-8 \
        TERM="${TERM:-dumb}" "${lent[@]}" \
        /bin/bash "$@"
}

# build_layer NAME BELOW SCRIPT: the layer's path in $LAYER.
build_layer() {
    local name=$1 below=$2 script=$3 start=$SECONDS temporary
    LAYER=$LAYERS/$name
    if [ -e "$LAYER.complete" ]; then
        touch "$LAYER.complete"
        return
    fi
    say "building $name (once; about ${4:-a minute})"
    temporary=$LAYERS/.building-$name
    remove_tree "$temporary" "$temporary.work" "$temporary.view"
    rm -rf "$LAYER"
    mkdir -p "$temporary"
    if [ -z "$below" ]; then
        bootstrap "$temporary"
    elif ! have_overlay; then
        cp -a --reflink=auto "$below/." "$temporary"
    fi
    lend_in_layer "$below" "$temporary"
    in_build "$below" "$temporary" "$script" >"$LAYERS/$name.log" 2>&1 || {
        tail -n 40 "$LAYERS/$name.log" >&2
        die "building $name failed; see $LAYERS/$name.log"
    }
    remove_tree "$temporary.work" "$temporary.view"
    [ -z "$below" ] || stack_of "$below" >"$LAYER.below"
    mv "$temporary" "$LAYER"
    touch "$LAYER.complete"
    say "$name is ready after $((SECONDS - start)) s"
}

# The host's settings are part of every layer's build, hence in each.
lend_in_layer() {
    local below=$1 tree=$2
    lend_to "$tree"
    [ -n "$below" ] && have_overlay || return 0
    # New folders in an upper layer take their mode from here.
    chmod 755 "$tree" "$tree"/etc "$tree"/etc/{ssl,apt,apt/apt.conf.d}
    chmod 700 "$tree/root"
}

bootstrap() {
    local tree=$1 mirror keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    local -a options=(--variant=minbase "--cache-dir=$SHARED/apt"
        --include=ca-certificates)
    need_debootstrap
    mirror=$(host_mirror)
    [ -e "$keyring" ] || die "$keyring is missing: apt-get install
    debian-archive-keyring"
    options+=("--keyring=$keyring")
    mkdir -p "$SHARED/apt"
    unshare --mount --propagation private --pid --fork --kill-child \
        debootstrap "${options[@]}" "$SUITE" "$tree" ${mirror:+"$mirror"} \
        >"$LAYERS/debootstrap.log" 2>&1 || {
        tail -n 20 "$LAYERS/debootstrap.log" >&2
        die "debootstrap failed; see $LAYERS/debootstrap.log"
    }
    if [ -z "$mirror" ]; then
        mirror=$(awk '$1 == "deb" { print $2; exit }' \
            "$tree/etc/apt/sources.list")
    fi
    root_sources "$mirror" >"$tree/etc/apt/sources.list"
}

# Deletes trees, unless something is mounted below one of them.
remove_tree() {
    local tree
    for tree; do
        [ -e "$tree" ] || continue
        if grep -qsF " $tree" /proc/[0-9]*/mounts; then
            die "$tree: something is mounted there still; not deleted"
        fi
        rm -rf --one-file-system "$tree"
    done
}

# Builds what is missing; leaves the topmost layer in $LAYER.
need_layers() {
    local debian venvs
    mkdir -p "$LAYERS"
    exec 8>"$LAYERS/.lock"
    flock --nonblock 8 || {
        say 'waiting for another build of the layers'
        flock 8
    }
    debian=debian-$(hash_of "$TOOLS"/recipe/{packages.txt,debian.sh})
    build_layer "$debian" '' /run/allinone/recipe/debian.sh '3 minutes'
    venvs=venvs-$(printf '%s' "$debian" | cat - \
        "$TOOLS"/recipe/{venvs.sh,constraints.txt,openstack.txt,test.txt,build.txt} |
        sha256sum | cut -c1-16)
    build_layer "$venvs" "$LAYER" /run/allinone/recipe/venvs.sh '3 minutes'
    [ "${1:-}" = base ] || need_wheel "$venvs"
    exec 8>&-
}

# The layers of the checkout, if it has something to build: the packages that
# it needs, and its wheel.
need_wheel() {
    local packages wheel
    SOURCE=$CACHE/.source
    [ -e "$CHECKOUT/pyproject.toml" ] || return 0
    copy_checkout "$SOURCE"
    packages=packages-$( (
        printf '%s' "$1"
        cd "$SOURCE" && cat "$TOOLS"/recipe/packages.{sh,py} pyproject.toml \
            ./*requirements.txt mirror/Cargo.lock
    ) 2>/dev/null | sha256sum | cut -c1-16)
    build_layer "$packages" "$LAYER" /run/allinone/recipe/packages.sh \
        'a minute'
    wheel=wheel-$( (
        printf '%s' "$packages"
        cd "$SOURCE" && cat "$TOOLS/recipe/wheel.sh" setup.*
        find lazyblob glance_store_blob nova_lazyimage mirror ./nova_* \
            -type f -print0 | sort -zu | xargs -0 sha256sum
    ) 2>/dev/null | sha256sum | cut -c1-16)
    build_layer "$wheel" "$LAYER" /run/allinone/recipe/wheel.sh \
        'a minute, less next time'
    forget_layers
}

# Forgets layers that were not used for a day; wheels, of which there is one
# a change, after an hour. What an instance stands on stays.
forget_layers() {
    local entry layer
    while IFS= read -r -d '' entry; do
        layer=${entry%.complete}
        grep -qsF "$layer" "$INSTANCES"/*/layer "$LAYERS"/*.below && continue
        remove_tree "$layer"
        rm -f "$layer".{complete,below,log}
    done < <(find "$LAYERS" -maxdepth 1 -name '*.complete' \
        \( -name 'wheel-*' -mmin +60 -o -mmin +1440 \) -print0)
}

# A copy of what git knows or would take, as a repository of its own.
copy_checkout() {
    local target=$1
    rm -rf "$target"
    mkdir -p "$target"
    (
        cd "$CHECKOUT" || exit
        git -c safe.directory="$CHECKOUT" ls-files -z --cached --others \
            --exclude-standard | while IFS= read -r -d '' file; do
            [ ! -e "$file" ] || printf '%s\0' "$file"
        done | tar --null --files-from=- -cf - | tar -C "$target" -xf -
        cd "$target" || exit
        git init -q
        git add -A
        git -c user.name=allinone -c user.email=allinone@localhost \
            commit -qm 'The checkout as it is' --no-gpg-sign
    )
    chmod 755 "$target"
    renew_sources "$target"
}

# Cargo goes by times, and all checkouts share its results: what differs from
# the sources of the last copy is made newer than anything built of those.
renew_sources() {
    local last=$SHARED/target/.sources now
    [ -d "$1/mirror" ] || return 0
    now=$(cd "$1/mirror" && find . -type f -print0 | sort -z |
        xargs -0 sha256sum | sha256sum)
    [ "$now" != "$(cat "$last" 2>/dev/null)" ] || return 0
    find "$1/mirror" -type f -exec touch {} +
    mkdir -p "$SHARED/target"
    printf '%s\n' "$now" >"$last"
}

# An older kernel's package in the cache, for tests that boot it.
need_old_kernel() {
    ! ls "$SHARED"/kernels/linux-image-6.1.*.deb >/dev/null 2>&1 || return 0
    need_layers base
    say 'fetching the kernel of Debian 12 (once)'
    remove_tree "$LAYERS"/kernel.new{,.work,.view}
    mkdir -p "$LAYERS/kernel.new"
    in_build "$LAYER" "$LAYERS/kernel.new" \
        /run/allinone/recipe/old_kernel.sh "$(host_mirror)"
    remove_tree "$LAYERS"/kernel.new{,.work,.view}
}
