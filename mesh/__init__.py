# SPDX-License-Identifier: Apache-2.0
"""Code that the processes share; no process starts here."""

import os

# gRPC's fork handlers crash the child between fork and exec when uvloop starts a process while
# calls are open: the worker dies of SIGSEGV or SIGABRT before its first line. We fork only to
# exec, which needs no handlers. This and the next are read when grpc is imported, so set before.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")

# gRPC's core writes each failed handshake to stderr in a form of its own, between our log lines;
# what failed is in the errors that we report.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
