# SPDX-License-Identifier: Apache-2.0
"""Decisions as pure functions: where a connection goes, what a CONNECT may reach, which endpoint."""
