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

# Installs what the checkout's parts need, and fetches its crates, so that a
# change of its sources costs no more than building the wheel.
set -eux
export PIP_DISABLE_PIP_VERSION_CHECK=1
export PIP_CACHE_DIR=/var/cache/lazyimage/pip
export PIP_CONSTRAINT=/run/allinone/recipe/constraints.txt
export CARGO_HOME=/var/cache/lazyimage/cargo
mkdir -p "$CARGO_HOME"
[ ! -e /root/.cargo/config.toml ] ||
    cp /root/.cargo/config.toml "$CARGO_HOME/config.toml"

cd /run/source
needs() { python3 /run/allinone/recipe/packages.py "$@"; }
needs agent conductor status >/tmp/lazyimage.txt
/opt/lazyimage/bin/pip install -r /tmp/lazyimage.txt
needs glance status >/tmp/openstack.txt
/opt/openstack/bin/pip install -r /tmp/openstack.txt
if [ -s test-requirements.txt ]; then
    /opt/test/bin/pip install -r test-requirements.txt
fi
if [ -e mirror/Cargo.toml ]; then
    (cd mirror && cargo fetch)
fi
usermod --append --groups nova lazyimage
rm -f /tmp/*.txt
