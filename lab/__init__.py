# SPDX-License-Identifier: Apache-2.0
"""A mesh on one machine: nodes and pods as network namespaces, run from ordinary Kubernetes YAML.

Starts the mesh's processes as programs and never imports them; what it knows lies in
files under the lab's state directory, so that any part can be killed and started again.
"""
