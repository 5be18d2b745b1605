# SPDX-License-Identifier: Apache-2.0
"""Who a workload is and how it proves it: SPIFFE ids, certificates, TLS contexts, the CA's client.

What belongs here ends at the TLS context: no listener, no tunnel, no policy.
`spiffe` and `verify` are pure; `ca_client` and `manager` are the only parts that wait.
"""

import os

# gRPC's core writes each failed handshake to stderr in a form of its own, between our log lines;
# what failed is in the errors that we report. Read when grpc is imported, so set before.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
