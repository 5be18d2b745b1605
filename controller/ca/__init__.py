# SPDX-License-Identifier: Apache-2.0
"""The certificate authority: who may have which identity, and the certificate for it."""
