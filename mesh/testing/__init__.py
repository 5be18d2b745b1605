# SPDX-License-Identifier: Apache-2.0
"""In-memory twins of what the mesh talks to, for tests: clock, certificate authority, ADS server.

Shipped code does not import them (an import contract says so); each has tests of its own.
"""
