# SPDX-License-Identifier: Apache-2.0
"""What a proxy knows of the mesh: the store, its indexes, and the choice of an endpoint. No I/O."""
