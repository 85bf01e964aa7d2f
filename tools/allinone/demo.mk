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

# The all-in-one: a real OpenStack in a root of its own. Included by Makefile.

ALLINONE := tools/allinone/root.sh
# Where chunks are kept: file, a folder; s3, a bucket of a Ceph gateway, with
# the catalog behind two conductors.
ENGINE ?= file

.PHONY: demo demo-shell demo-down demo-clean

demo:  ## start the all-in-one and show the main path (IMAGE=path, ENGINE=s3)
	@LAZYIMAGE_ENGINE=$(ENGINE) tools/allinone/demo.sh $(if $(IMAGE),--image "$(IMAGE)")

demo-shell:  ## a shell in the running all-in-one, client configured
	@$(ALLINONE) shell demo

demo-down:  ## stop the all-in-one; its state stays
	@tools/allinone/demo.sh --down

demo-clean:  ## stop it and delete everything it ever stored
	@$(ALLINONE) clean
