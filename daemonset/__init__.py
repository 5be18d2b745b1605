# SPDX-License-Identifier: Apache-2.0
"""The node agent: decides which pods of its node are in the mesh and puts them there.

It owns the enrolment maps, the per-pod `sk_lookup` links, the mark route inside
each pod and the ZDS server; it carries no traffic and knows no policy. Decisions
(`pods`, `enroll`, `recovery`) are pure; the rest is I/O around them.
"""
