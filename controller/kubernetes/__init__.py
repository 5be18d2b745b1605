# SPDX-License-Identifier: Apache-2.0
"""The controller on a cluster: TokenReview, the authority's Secret, the Lease, what is written back.

Reading objects is `mesh.config.kubernetes`; what is to be written is decided by `controller.translate`.
"""
