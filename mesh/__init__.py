# SPDX-License-Identifier: Apache-2.0
"""Code that the processes share; no process starts here."""
