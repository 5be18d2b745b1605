# SPDX-License-Identifier: Apache-2.0
"""The version of every program of this checkout; packaging reads it here too."""

from __future__ import annotations

VERSION = "0.1.0"
