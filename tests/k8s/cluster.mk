# SPDX-License-Identifier: Apache-2.0
# A real Kubernetes cluster on this machine, and the tests that need one; see docs/kubernetes.md.
CLUSTER := tests/k8s/cluster
NODES ?= 2

.PHONY: cluster cluster-down image test-k8s

cluster:
	@$(CLUSTER) up $(NODES)

cluster-down:
	@$(CLUSTER) down

# SLIM=1: with the BPF programs compiled on this machine (root), without bcc and LLVM.
image:
	@tools/bootstrap runtime
	@$(PYTHON) -m daemonset.images.build $(if $(SLIM),--slim)

# KEEP=1 leaves the cluster to look at.
test-k8s: bootstrap image
	@$(CLUSTER) up $(NODES)
	@AMBIT_K8S_REQUIRED=1 $(PYTEST) tests/kube_api tests/k8s $(ARGS); status=$$?; [ -n "$(KEEP)" ] || $(CLUSTER) down; exit $$status
