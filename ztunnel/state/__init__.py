# SPDX-License-Identifier: Apache-2.0
"""What a ztunnel knows of the mesh, with the indexes that its decisions read. No I/O."""
