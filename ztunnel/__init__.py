# SPDX-License-Identifier: Apache-2.0
"""The node's L4 proxy: in-pod listeners, HBONE both ways, policy, load balancing, DNS.

`app` is the supervisor (ZDS, xDS, certificates, admin); `worker` a data-plane process.
`state` and `resolve` decide and do no I/O. This package imports no other process.
"""
