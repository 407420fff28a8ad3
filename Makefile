# The first two targets are the README's two commands: `make image`, then `make test`.

ROLE ?= controller
OUT ?= out
MINUTES ?= 10

IMAGEGEN := .venv/bin/imagegen
PYTEST := .venv/bin/python -m pytest
TIER := .ci/tier

# Steps share .venv and $(OUT), and a machine's cores are few.
.NOTPARALLEL:

.PHONY: help image test test-vm set-up set-up-test lint unit serve images canary cluster test-faults test-tempest model faults ironic tempest vm-full pxe-full elements dib-role bench lock clean

help: ## list the targets
	@sed -n 's/^\([a-z][a-z-]*\):.*## \(.*\)/\1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 14

image: set-up ## set-up, then a bootable image of the controller
	$(IMAGEGEN) -o $(OUT) build --role controller

test: set-up-test ## set-up, lint, unit, serve and cluster tiers; needs root, builds images that are missing
	.ci/test

test-vm: set-up-test images ## computes as virtual machines, from disk image and seed ISO and over the network
	$(TIER) vm $(PYTEST) tests/vm

set-up: ## install what building images needs: Debian packages, .venv with pinned Python packages
	$(TIER) set-up .ci/set-up build

set-up-test: ## install what the tests need in addition
	$(TIER) set-up .ci/set-up test

lint: set-up-test ## ruff, mypy, shellcheck and dib-lint
	$(TIER) lint $(PYTEST) tests/unit/project/test_linters.py

unit: set-up-test ## the pure parts, without root, network or images
	$(TIER) unit $(PYTEST) -n auto tests/unit --ignore=tests/unit/project/test_linters.py

serve: set-up-test ## `imagegen serve` on the loopback: claims, slow and rude clients, a thousand nodes, the page in Chromium
	$(TIER) serve $(PYTEST) tests/serve

images: set-up-test ## build the images of both roles, if they are missing
	$(TIER) images $(IMAGEGEN) -o $(OUT) build

canary: set-up-test ## build the compute's image among values that must not get into it, and look for them
	$(TIER) canary $(PYTEST) tests/canary

cluster: set-up-test images ## boot the trees with systemd-nspawn, prove the procedure's 27 items; needs root
	$(TIER) cluster $(PYTEST) tests/cluster

model: set-up-test ## the protocol's model test with new random schedules, for MINUTES; keeps failures
	end=$$(( $$(date +%s) + 60 * $(MINUTES) )); while [ $$(date +%s) -lt $$end ]; do \
	    CI= MODEL_EXAMPLES=500 $(PYTEST) -q tests/unit/agent/test_protocol.py -k TestCluster || exit 1; done

test-faults: set-up-test images ## the part of the fault matrix that CI runs; needs root
	$(TIER) faults .venv/bin/python tests/faults/run_faults.py --fixed

faults: set-up-test images ## the whole fault matrix, 75 minutes at most; continues where it stopped; SEED=N repeats a run
	$(TIER) faults .venv/bin/python tests/faults/run_faults.py $(if $(SEED),--seed $(SEED))

ironic: set-up-test ## have Ironic itself read what `imagegen baremetal` writes; installs it into .venv-ironic
	$(TIER) set-up .ci/set-up ironic
	$(TIER) ironic $(PYTEST) tests/ironic

test-tempest: set-up-test images ## a part of `make tempest`, 5 minutes: servers, networks, metadata, resize, live migration; needs root
	$(TIER) set-up .ci/set-up tempest
	$(TIER) tempest .venv/bin/python tests/tempest/run_tempest.py --fixed

tempest: set-up-test images ## have Tempest test a cloud of two computes: all of its compute API, smoke tests of network and image; 45 minutes
	$(TIER) set-up .ci/set-up tempest
	$(TIER) tempest .venv/bin/python tests/tempest/run_tempest.py --document

vm-full: set-up-test images ## test-vm with a live compute besides, and a controller that loses power and its medium; an hour without KVM
	$(TIER) vm-full $(PYTEST) tests/vm --full

pxe-full: set-up-test images ## network boots of all kinds: controllers too, BIOS and UEFI, full and proxy DHCP; an hour without KVM
	$(TIER) pxe-full $(PYTEST) tests/pxe

elements: set-up ## write the elements' pkg-map and svc-map from their declarations
	.venv/bin/python tests/maps.py

dib-role: set-up ## build ROLE with nothing but disk-image-create, as a tar
	.venv/bin/python .ci/dib_role.py $(ROLE) $(OUT)

bench: images ## measure each figure and its peer in the same run, into docs/benchmarks.md
	.ci/set-up bench
	.venv/bin/python tests/bench.py

lock: ## pin the newest versions of the Python packages in requirements.lock
	.ci/lock

clean: ## remove .venv, $(OUT) and caches
	rm -rf --one-file-system .venv .venv-ironic .venv-tempest $(OUT) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
