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

# Builds the wheel of the checkout and installs it where it belongs. What was
# compiled is kept in the cache for the next time.
set -eux
export PIP_DISABLE_PIP_VERSION_CHECK=1
export CARGO_HOME=/var/cache/lazyimage/cargo
export CARGO_TARGET_DIR=/var/cache/lazyimage/target
export CARGO_BUILD_JOBS=2

cd /run/source
/opt/build/bin/python -m build --wheel --no-isolation \
    --outdir /usr/share/lazyimage-wheel .
wheel=$(echo /usr/share/lazyimage-wheel/*.whl)
for venv in lazyimage openstack; do
    "/opt/$venv/bin/pip" install --no-deps "$wheel"
    "/opt/$venv/bin/pip" check
done
# The module that only the wheel has, for a checkout that is run in place.
mkdir -p /usr/share/lazyimage-module
find /opt/lazyimage/lib/python3*/site-packages/nova_lazyimage \
    -name '_mirror*.so' -exec cp {} /usr/share/lazyimage-module/ \;
