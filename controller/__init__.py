# SPDX-License-Identifier: Apache-2.0
"""The controller: objects in, configuration and certificates out.

`translate` is pure, `xds` serves its result as deltas, `ca` certifies workloads, `app`
puts the process together. Everything it knows is in the objects and in `--ca-dir`; it
can be stopped and started at any time without a proxy losing anything.
"""
