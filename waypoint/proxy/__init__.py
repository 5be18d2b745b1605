# SPDX-License-Identifier: Apache-2.0
"""Requests in flight: the exchange of one request, and the connections on its two sides."""
