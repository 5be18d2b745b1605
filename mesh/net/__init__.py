# SPDX-License-Identifier: Apache-2.0
"""Sockets and the byte loop between two of them; no protocol above TCP."""
