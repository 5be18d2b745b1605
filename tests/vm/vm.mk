# SPDX-License-Identifier: Apache-2.0
# The root tests and the demo on another kernel: make test-vm [VM="--kernel debian --minutes 90"] [ARGS="probe bpf"]
VM ?= --minutes 120

.PHONY: test-vm
test-vm: bootstrap
	@tests/vm/run $(VM) tests/vm/suite $(ARGS)
