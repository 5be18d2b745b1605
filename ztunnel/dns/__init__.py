# SPDX-License-Identifier: Apache-2.0
"""The pods' resolver: names of the mesh answered here, all others by the resolver that the pod asked."""
