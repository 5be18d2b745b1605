# SPDX-License-Identifier: Apache-2.0
"""Metrics, log lines and reasons: what every process says about itself, in one vocabulary."""
