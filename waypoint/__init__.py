# SPDX-License-Identifier: Apache-2.0
"""The waypoint: the mesh's L7 proxy for a namespace, service or workload.

It ends HBONE with its own certificate, routes each request by the tables that the
controller sends and opens HBONE to the chosen endpoint. `http` frames messages,
`routing` decides; both are free of I/O.
"""
