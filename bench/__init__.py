# SPDX-License-Identifier: Apache-2.0
"""Measurements beside a peer, in one run: ratios, never absolute times."""
