# SPDX-License-Identifier: Apache-2.0
"""Who a workload is and how it proves it: SPIFFE ids, certificates, TLS contexts, the CA's client.

What belongs here ends at the TLS context: no listener, no tunnel, no policy.
`spiffe` and `verify` are pure; `ca_client` and `manager` are the only parts that wait.
"""
