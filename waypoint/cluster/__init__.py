# SPDX-License-Identifier: Apache-2.0
"""The endpoints of a service as one waypoint sees them: who is chosen, limited, left out.

No I/O, no clock, no randomness of its own. How an endpoint is reached is `waypoint.upstreams`'
business, what is sent there that of `waypoint.proxy`.
"""
