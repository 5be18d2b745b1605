# SPDX-License-Identifier: Apache-2.0
"""Configuration as users write it: Kubernetes objects in files, and their changes."""
