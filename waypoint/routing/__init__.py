# SPDX-License-Identifier: Apache-2.0
"""Which rule takes a request and what it makes of it: pure, no I/O and no clock."""
