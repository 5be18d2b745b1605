# SPDX-License-Identifier: Apache-2.0
"""Kubernetes and Istio objects to what ztunnels are told; pure, without I/O."""
