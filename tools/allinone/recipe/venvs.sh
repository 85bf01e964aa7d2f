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

# Makes the virtual environments: /opt/openstack with the services,
# /opt/lazyimage empty, /opt/build for the wheel, /opt/test for the tests.
set -eux
export PIP_DISABLE_PIP_VERSION_CHECK=1
export PIP_CACHE_DIR=/var/cache/lazyimage/pip
export PIP_CONSTRAINT=/run/allinone/recipe/constraints.txt
recipe=/run/allinone/recipe
site=lib/python3.13/site-packages

for venv in openstack lazyimage build test; do
    python3 -m venv "/opt/$venv"
done
/opt/openstack/bin/pip install -r "$recipe/openstack.txt"
/opt/build/bin/pip install -r "$recipe/build.txt"
printf '%s\n' "/opt/openstack/$site" "/opt/lazyimage/$site" \
    >"/opt/test/$site/services.pth"
/opt/test/bin/pip install -r "$recipe/test.txt"
/opt/openstack/bin/pip freeze >/opt/openstack/versions.txt
/opt/test/bin/pip freeze >/opt/test/versions.txt
