# SPDX-License-Identifier: Apache-2.0
"""The command `ambit`: arguments in, data on stdout, prose on stderr, exit codes of the command contract."""
