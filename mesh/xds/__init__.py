# SPDX-License-Identifier: Apache-2.0
"""Mesh configuration on the wire: resources, their codecs, and the delta ADS client.

`decode`, `encode`, `routes` and `protocol` are pure; `client` alone holds a
connection. What the configuration means is the business of who receives it.
"""

import os

# gRPC's core writes each failed handshake to stderr in a form of its own, between our log lines;
# what failed is in the errors that we report. Read when grpc is imported, so set before.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
