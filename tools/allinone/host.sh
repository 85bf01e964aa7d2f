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

# What the host lends to the private root: its Debian mirror, its proxies and
# certificates, the settings of pip and cargo. Everything is derived; no
# address stands here. Sourced by root.sh.

readonly SUITE=trixie

say() { printf '%s\n' "allinone: $*" >&2; }

die() {
    say "$*"
    exit 1
}

# Makes sure of root; everything else of the host side runs as root.
become_root() {
    [ "$(id -u)" -eq 0 ] && return
    command -v sudo >/dev/null ||
        die 'needs root: run it as root, or install sudo'
    local -a keep=(CI HOME XDG_CACHE_HOME SSL_CERT_FILE)
    mapfile -t -O "${#keep[@]}" keep < <(compgen -e |
        grep -Ei '^(LAZYIMAGE_|PIP_|CARGO_|[a-z]+_proxy$)' | grep -v TOKEN)
    local list
    list=$(IFS=,; printf '%s' "${keep[*]}")
    say 'needs root for private namespaces and mounts: asking sudo'
    exec sudo --preserve-env="$list" LAZYIMAGE_CACHE="$CACHE" \
        bash "$TOOLS/root.sh" "$@"
}

need_debootstrap() {
    local install='apt-get update && apt-get install --no-install-recommends'
    install+=' debootstrap debian-archive-keyring'
    local may_install=${LAZYIMAGE_INSTALL_DEBOOTSTRAP:-}
    command -v debootstrap >/dev/null && return
    [ "${CI:-}" != true ] || may_install=yes
    if [ -n "$may_install" ]; then
        say 'installing debootstrap'
        { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install \
            --yes --no-install-recommends debootstrap \
            debian-archive-keyring; } >&2 && return
        die 'could not install debootstrap by apt-get'
    fi
    die "debootstrap is missing; it is the one package needed from the
host. Install it with:

    sudo sh -c '$install'

or set LAZYIMAGE_INSTALL_DEBOOTSTRAP=1 to have that done here"
}

# Prints "URI SUITE" for each archive of the host, if the host is a Debian.
host_archives() {
    local id=''
    id=$(. /etc/os-release 2>/dev/null && printf '%s' "${ID:-}")
    [ "$id" = debian ] || return 0
    {
        cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null |
            sed -nE 's/^deb[[:space:]]+(\[[^]]*\][[:space:]]*)?//p' |
            awk '$1 !~ /^cdrom:/ { print $1, $2 }'
        cat /dev/null /etc/apt/sources.list.d/*.sources 2>/dev/null |
            awk '
                function flush(   i, j) {
                    if (deb) for (i = 1; i <= nu; i++)
                        for (j = 1; j <= ns; j++) print uri[i], suite[j]
                    nu = ns = deb = 0
                }
                /^[[:space:]]*$/ { flush() }
                /^Types:/ { for (i = 2; i <= NF; i++) if ($i == "deb") deb = 1 }
                /^URIs:/ { for (i = 2; i <= NF; i++) uri[++nu] = $i }
                /^Suites:/ { for (i = 2; i <= NF; i++) suite[++ns] = $i }
                END { flush() }'
    } || true
}

# The host's main Debian mirror, or nothing: debootstrap then has its own.
host_mirror() {
    [ -n "${LAZYIMAGE_MIRROR:-}" ] && {
        printf '%s' "$LAZYIMAGE_MIRROR"
        return
    }
    local codename
    codename=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-none}")
    host_archives | awk -v c="$codename" '$2 == c { print $1; exit }'
}

# The root's sources.list: the host's archives with the suite exchanged.
root_sources() {
    local mirror=$1 codename
    codename=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-none}")
    printf 'deb %s %s main\n' "$mirror" "$SUITE"
    host_archives | awk -v c="$codename" -v s="$SUITE" '
        $2 == c "-updates" || $2 == c "-security" {
            sub(c, s, $2); print "deb", $1, $2, "main" }' | sort -u
}

host_certificates() {
    local file
    for file in "${SSL_CERT_FILE:-}" "${CURL_CA_BUNDLE:-}" \
        /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt
    do
        [ -n "$file" ] && [ -s "$file" ] && {
            printf '%s' "$file"
            return
        }
    done
}

# Prints NAME=value lines for commands in the root that use the network.
host_environment() {
    local name ca=/etc/ssl/host-ca.crt
    while read -r name; do
        case ${name^^} in
            *TOKEN* | *PASSWORD* | PIP_FIND_LINKS | PIP_CERT) ;;
            PIP_* | CARGO_HTTP_* | CARGO_NET_* | CARGO_REGISTRIES_* | \
                CARGO_SOURCE_* | *_PROXY)
                printf '%s=%s\n' "$name" "${!name}"
                ;;
        esac
    done < <(compgen -e)
    if [ -n "$(host_certificates)" ]; then
        printf '%s\n' "PIP_CERT=$ca" "REQUESTS_CA_BUNDLE=$ca" \
            "SSL_CERT_FILE=$ca" "CURL_CA_BUNDLE=$ca" "CARGO_HTTP_CAINFO=$ca" \
            "GIT_SSL_CAINFO=$ca"
    fi
}

# Copies what is taken over from the host into the tree $1.
lend_to() {
    local root=$1 file
    mkdir -p "$root/etc/ssl" "$root/etc/apt/apt.conf.d" "$root/root/.cargo"
    file=$(host_certificates)
    if [ -n "$file" ]; then
        cp --dereference "$file" "$root/etc/ssl/host-ca.crt"
        printf 'Acquire::https::CaInfo "/etc/ssl/host-ca.crt";\n' \
            >"$root/etc/apt/apt.conf.d/80host-ca"
    fi
    if command -v apt-config >/dev/null; then
        apt-config dump |
            grep -E '^Acquire::(http|https)::(Proxy|Timeout|Pipeline)|^Acquire::(Check-|Retries|ForceIP)' \
                >"$root/etc/apt/apt.conf.d/81host" || true
    fi
    for file in /etc/pip.conf "${HOME:-/root}/.config/pip/pip.conf" \
        "${HOME:-/root}/.pip/pip.conf"
    do
        [ -s "$file" ] &&
            grep -Ev '^[[:space:]]*(cert|find-links)' "$file" \
                >"$root/etc/pip.conf"
    done
    for file in "${CARGO_HOME:-${HOME:-/root}/.cargo}"/config{.toml,}; do
        [ -s "$file" ] && cp "$file" "$root/root/.cargo/config.toml"
    done
    for file in /etc/resolv.conf /etc/hosts; do
        [ -s "$file" ] && cat "$file" >"$root$file"
    done
    return 0
}
