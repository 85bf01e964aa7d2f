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

.DEFAULT_GOAL := help

# Runs a command in a fresh instance of the all-in-one's private root.
ROOT_RUN = tools/allinone/root.sh run --
# Stages of "make test": all, or those named.
STAGES ?=

# How long "make soak" is: kills of the agent, seconds of each other run,
# objects that are listed.
KILLS ?= 1000
SECONDS ?= 600
KEYS ?= 1000000
# A test of it, as pytest's -k takes it; all if empty.
ONLY ?=

.PHONY: help test test-quick lint docs bench soak

help: ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sort -t: -k1,1 -u | \
		awk -F ':.*## *' '{ printf "  make %-12s %s\n", $$1, $$2 }'

test: ## all that CI runs, in a root of its own [STAGES="lint unit"]
	@status=0; \
	$(if $(STAGES),:,tests/e2e/test_host_untouched.sh) || status=1; \
	$(ROOT_RUN) python3 tools/test/run.py $(STAGES) || status=1; \
	exit $$status

test-quick: ## unit tests of Python and Rust, on this host
	tools/test/quick

lint: ## the linters, on this host
	tools/test/tox -e pep8

docs: ## the documentation, in doc/build/html, on this host
	tools/test/tox -e docs

soak: ## the long runs, in a root of its own [KILLS=1000 SECONDS=600 KEYS=1000000 ONLY=name]
	tools/allinone/root.sh kernel
	LAZYIMAGE_SOAK=1 LAZYIMAGE_SOAK_KILLS=$(KILLS) \
		LAZYIMAGE_SOAK_SECONDS=$(SECONDS) \
		LAZYIMAGE_SOAK_KEYS=$(KEYS) \
		LAZYIMAGE_SOAK_ONLY='$(ONLY)' \
		$(ROOT_RUN) python3 tools/test/run.py soak

bench: ## the comparisons, in a root of its own [ONLY=name]
	tools/test/bench $(ONLY)

-include tools/allinone/demo.mk
