# SPDX-License-Identifier: Apache-2.0
"""Mesh configuration on the wire: resources, their codecs, and the delta ADS client.

`decode`, `encode`, `routes` and `protocol` are pure; `client` alone holds a
connection. What the configuration means is the business of who receives it.
"""
