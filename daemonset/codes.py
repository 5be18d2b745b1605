# SPDX-License-Identifier: Apache-2.0
"""Why the agent refuses, ignores or fails: one code each, with what a person does next.

Codes appear in log lines, CNI answers, the admin page and metric labels. They never
change their meaning; a retired one is not used again.
"""

from __future__ import annotations

import enum


class Code(enum.Enum):
    """A message code, and under it the remedy."""

    # Pods that are left alone.
    NOT_LABELLED = ("AMB2001", "label the namespace or the pod istio.io/dataplane-mode=ambient to enrol it")
    OPTED_OUT = ("AMB2002", "remove the pod's label istio.io/dataplane-mode=none to enrol it")
    HOST_NETWORK = (
        "AMB2003",
        "a host-network pod shares the node's network namespace; it cannot be enrolled",
    )
    SIDECAR = ("AMB2004", "recreate the pod without its sidecar (sidecar.istio.io/inject: false) to enrol it")
    EXCLUDED_NAMESPACE = ("AMB2005", "pods of system namespaces stay out; run the application in another one")
    FINISHED = ("AMB2006", "the pod has ended; nothing is left to enrol")
    RUNTIME = ("AMB2007", "sockets of this runtime class are made in a guest kernel and cannot be captured")
    UNKNOWN_MODE = ("AMB2008", "set istio.io/dataplane-mode to ambient or none")
    NOT_STARTED = ("AMB2009", "the pod has no address yet; it is enrolled when it starts")
    OTHER_NODE = ("AMB2010", "the agent of the pod's own node enrols it")
    MALFORMED_POD = ("AMB2011", "correct the Pod object")
    STATIC_POD = ("AMB2012", "run it as a DaemonSet to have it in the mesh")

    # Steps of an enrolment that failed.
    NETNS_NOT_FOUND = (
        "AMB2101",
        "check that the pod runs on this node and that the agent sees the host's /proc",
    )
    ADDRESS_NOT_OWNED = ("AMB2102", "the namespace found is not the pod's; recreate the pod if this lasts")
    NODE_NAMESPACE = ("AMB2103", "the CNI named the node's own network namespace; correct its answer")
    NOT_LINKED = ("AMB2104", "a namespace nested in the pod is not enrolled; give the pod's own")
    ROUTED_ELSEWHERE = ("AMB2105", "two pods claim the address; delete one of them")
    ROUTING_FAILED = ("AMB2106", "give the agent CAP_NET_ADMIN and CAP_SYS_ADMIN")
    ZTUNNEL_ABSENT = ("AMB2107", "no ztunnel is connected; look at ztunnel's log on this node")
    ZTUNNEL_REFUSED = ("AMB2108", "ztunnel did not take the pod; look at ztunnel's log on this node")
    LISTENERS_MISSING = ("AMB2109", "look at ztunnel's log on this node: its in-pod listeners are missing")
    LOOKUP_FAILED = ("AMB2110", "run `python3 -m bpf status` on this node")
    RECORD_FAILED = ("AMB2111", "run `python3 -m bpf status` on this node")
    PUBLISH_FAILED = (
        "AMB2112",
        "check that the status directory is writable, or on a cluster that the API server answers",
    )
    RELEASE_FAILED = (
        "AMB2113",
        "remove the cause; the agent tries again, as does `python -m daemonset cleanup`",
    )
    STEP_DEFECT = ("AMB2114", "report this with the agent's log; the agent tries again")

    # The agent itself.
    LOADER_FAILED = ("AMB2201", "run `python3 -m bpf probe` on this node; it names what the kernel lacks")
    LOADER_TIMEOUT = ("AMB2202", "the node is overloaded or the compiler hangs; the agent tries again")
    LOADER_MISSING = (
        "AMB2203",
        "install python3-bpfcc, or name an interpreter that has it in AMBIT_BPF_PYTHON",
    )
    FOREIGN_PEER = ("AMB2204", "only ztunnel may connect to the ZDS socket; find out what the process is")
    ANOTHER_AGENT = ("AMB2205", "stop the other agent of this node first")
    BAD_SETTING = ("AMB2206", "correct the agent's environment")
    NOT_ROOT = ("AMB2207", "run the agent as root (CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN)")
    LOOP_ENDED = ("AMB2208", "report this with the agent's log; pods stay captured, start the agent again")
    ADDRESS_IN_USE = ("AMB2209", "stop the process that has the address, or choose another one")
    NO_CGROUP = ("AMB2210", "mount cgroup v2, and name directories below it that exist")

    # The CNI socket.
    CNI_BAD_REQUEST = ("AMB2301", "send one JSON object a line: cmd, uid, namespace, name, netns, ips")
    CNI_UNKNOWN_POD = ("AMB2302", "the agent has not seen this pod; it looks again when the CNI is retried")
    CNI_TIMEOUT = ("AMB2303", "the pod must not start before it is enrolled; see the reason, the CNI retries")

    def __init__(self, code: str, remedy: str) -> None:
        self.code = code
        self.remedy = remedy

    def __str__(self) -> str:
        return self.code
