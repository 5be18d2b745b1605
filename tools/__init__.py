# SPDX-License-Identifier: Apache-2.0
"""Commands of developers; nothing here is shipped."""
