# SPDX-License-Identifier: Apache-2.0
"""Delta ADS: the mesh as named resources, and each proxy told what changed."""
