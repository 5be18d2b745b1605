# SPDX-License-Identifier: Apache-2.0
# The two commands of the README are `make demo` and `make test`; both install what is missing.
PYTHON := .venv/bin/python
PYTEST := $(PYTHON) -m pytest
ARGS ?=
# tools/bootstrap names the goal in its advice.
export MAKECMDGOALS

.PHONY: help demo test lint unit root-tests bench bootstrap gen clean

help:
	@echo "make demo [ARGS=--once]  run the shop in a lab on this machine and prove what the mesh does"
	@echo "make test                everything: lint, unit, interop, BPF and network-namespace tests (root)"
	@echo "make lint unit           what needs neither root nor a kernel feature"
	@echo "make bench [ARGS=...]    our tunnel and our waypoint beside Envoy's"
	@echo "make cluster             a Kubernetes of two nodes on this machine (root); make cluster-down ends it"
	@echo "make image [SLIM=1]      the image that the manifests run, built without a container engine"
	@echo "make test-k8s            the mesh on that cluster: install, policy, waypoint, restarts, removal"
	@echo "make test-vm [ARGS=...]  the root tests and the demo on Debian's 6.1, in a virtual machine"
	@echo "make clean               remove .venv and caches"

demo:
	@tools/bootstrap runtime
	@$(PYTHON) examples/shop/demo.py $(ARGS)

test: lint
	@[ "$$(id -u)" = 0 ] || { echo "make test needs root for network namespaces and BPF: sudo make test" >&2; exit 69; }
	$(PYTEST) $(ARGS)

lint: bootstrap
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	.venv/bin/lint-imports
	$(PYTHON) tools/gen_proto.py --check
	$(PYTHON) -m tools.dashboards --check

unit: bootstrap
	$(PYTEST) tests/unit tests/direct tests/interop $(ARGS)

root-tests: bootstrap
	$(PYTEST) tests/bpf tests/netns tests/perf $(ARGS)

bench: bootstrap
	@$(PYTHON) -m bench $(ARGS)

bootstrap:
	@tools/bootstrap dev

gen: bootstrap
	$(PYTHON) tools/gen_proto.py
	$(PYTHON) -m tools.dashboards

include tests/vm/vm.mk

clean:
	rm -rf .venv .mypy_cache .ruff_cache .import_linter_cache .hypothesis bench/out
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

include tests/k8s/cluster.mk
