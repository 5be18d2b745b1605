# SPDX-License-Identifier: Apache-2.0
"""What every process is built on: tasks with owners, clocks, readiness, a small HTTP server."""
