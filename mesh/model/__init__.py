# SPDX-License-Identifier: Apache-2.0
"""The mesh's nouns as frozen values: workloads, services, policies.

Only dataclasses and the parsing or formatting of their parts belong here: no
I/O, no clock, no wire types. Protobuf, YAML and BPF structs become these values
at the edge (`mesh.xds.decode`, `controller.translate`, `bpf.abi`) and nothing
further in ever sees the wire again.
"""
