# SPDX-License-Identifier: Apache-2.0
"""L4 authorisation: one pure function from policies and a connection to a verdict.

Fetching policies, choosing those that apply to a workload and closing connections
belong to the proxies; this package only judges.
"""
