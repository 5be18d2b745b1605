# SPDX-License-Identifier: Apache-2.0
"""The node agent hands pods' network namespaces to ztunnel: Istio's ZDS over a unix socket.

`messages` and `session` are pure, `packet` moves datagrams and descriptors, `connection` is
the server (agent) and the client (ztunnel). What is done with a namespace is theirs.
"""
