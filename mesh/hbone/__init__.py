# SPDX-License-Identifier: Apache-2.0
"""HBONE: CONNECT tunnels over HTTP/2 in mutual TLS. `codec` decides, `driver` does the I/O.

Neither knows of identities or policy: who may open a tunnel is the caller's decision.
"""
