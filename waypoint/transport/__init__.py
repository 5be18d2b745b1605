# SPDX-License-Identifier: Apache-2.0
"""What goes on top of a connection to an endpoint: TLS that the waypoint originates, PROXY headers."""
