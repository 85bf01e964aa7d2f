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

# Makes a Debian minbase the one the services need. Runs inside, as root,
# with the host's network.
set -eux
export DEBIAN_FRONTEND=noninteractive

printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
chmod 755 /usr/sbin/policy-rc.d
cat >/etc/dpkg/dpkg.cfg.d/lean <<'END'
path-exclude=/usr/share/doc/*
path-exclude=/usr/share/man/*
path-exclude=/usr/share/locale/*
path-exclude=/usr/share/info/*
force-unsafe-io
END
cat >/etc/apt/apt.conf.d/90lean <<'END'
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "3";
Binary::apt::APT::Keep-Downloaded-Packages "true";
APT::Keep-Downloaded-Packages "true";
END
mkdir -p /var/cache/lazyimage/apt/partial
mount --bind /var/cache/lazyimage/apt /var/cache/apt/archives

apt-get update
mapfile -t packages < <(sed 's/#.*//' /run/allinone/recipe/packages.txt |
    grep -v '^ *$')
apt-get install --yes "${packages[@]}"

# The guest's kernel is only unpacked: nothing here boots it.
kernel=$(apt-cache depends --important linux-image-cloud-amd64 |
    awk '$1 == "Depends:" && $2 ~ /^linux-image-[0-9]/ { print $2; exit }')
mkdir -p /usr/share/lazyimage-guest
cd /var/cache/apt/archives
apt-get download "$kernel"
dpkg-deb -x "$(find . -name "${kernel}_*.deb" | sort -V | tail -n 1)" \
    /usr/share/lazyimage-guest

# One user a service, as the distribution's packages make them.
for user in keystone glance placement nova lazyimage; do
    useradd --system --user-group --home-dir "/var/lib/$user" \
        --no-create-home --shell /usr/sbin/nologin "$user"
    install -d -o "$user" -g "$user" -m 755 "/var/lib/$user"
    install -d -o root -g "$user" -m 750 "/etc/$user"
    install -d -o "$user" -g adm -m 755 "/var/log/$user"
done
usermod --append --groups libvirt,kvm nova
usermod --append --groups lazyimage glance
chmod 755 /etc/lazyimage
grep -q '^user_allow_other' /etc/fuse.conf ||
    echo user_allow_other >>/etc/fuse.conf

cd /
umount /var/cache/apt/archives
rm -rf /var/lib/apt/lists/*
