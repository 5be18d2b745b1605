# SPDX-License-Identifier: Apache-2.0
# A real Kubernetes cluster on this machine, and the tests that need one; see docs/kubernetes.md.
CLUSTER := tests/k8s/cluster
NODES ?= 2

.PHONY: cluster cluster-down image test-k8s

cluster:
	@$(CLUSTER) up $(NODES)

cluster-down:
	@$(CLUSTER) down

image:
	@tools/bootstrap runtime
	@$(PYTHON) -m daemonset.images.build

test-k8s: bootstrap
	@[ "$$(id -u)" = 0 ] || { echo "make test-k8s needs root for nodes: sudo make test-k8s" >&2; exit 69; }
	$(PYTEST) tests/k8s $(ARGS)
