# SPDX-License-Identifier: Apache-2.0
"""What is asked of others before a request goes on: authorisers, key sets, rate limits."""
