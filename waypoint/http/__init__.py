# SPDX-License-Identifier: Apache-2.0
"""HTTP messages as bytes and values: parsers and writers without I/O.

What a parser lets through is what the mesh forwards, so each accepts one canonical
form only and refuses whatever two implementations could read differently.
"""
