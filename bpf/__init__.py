# SPDX-License-Identifier: Apache-2.0
"""Capture in the kernel: the programs, their loader and typed access to their maps.

Standard library only, so that the system's interpreter can run it. `compile` alone imports bcc, in the
short process `python3 -m bpf load|build`; everything else works on pins through bpf(2).
"""
