# SPDX-License-Identifier: Apache-2.0
"""What the command says, by code: exit code, what it means, what to do. Codes never change their meaning."""

from __future__ import annotations

import enum

EXIT_OK = 0
EXIT_ERROR = 1
EXIT_CHECK = 2
EXIT_WARNINGS = 3
EXIT_NO_DATA = 4
EXIT_USAGE = 64
EXIT_INPUT = 65
EXIT_UNREACHABLE = 69
EXIT_TIMEOUT = 124


class Code(enum.Enum):
    """A message code: exit code of a command that ends with it, its meaning, the remedy."""

    # Where the mesh is.
    NO_MESH = (
        "AMB3001",
        EXIT_UNREACHABLE,
        "No lab is up on this machine under the name that was asked for.",
        "start one with `ambit lab up -f FILE`, or name another with --lab NAME",
    )
    WHICH_MESH = (
        "AMB3002",
        EXIT_USAGE,
        "Several labs are up, and the command was not told which one is meant.",
        "name one: --lab NAME, or AMBIT_LAB=NAME for the whole shell",
    )
    UNREACHABLE = (
        "AMB3003",
        EXIT_UNREACHABLE,
        "A part of the mesh does not answer on its admin port.",
        "`ambit check` says which parts run",
    )
    BAD_ANSWER = (
        "AMB3004",
        EXIT_ERROR,
        "A part of the mesh answered with something else than expected: another version, or a fault.",
        "use a command of the same version as the mesh (`ambit version`)",
    )
    NOT_FOUND = (
        "AMB3005",
        EXIT_ERROR,
        "What the command was asked about does not exist.",
        "`ambit status` lists nodes and pods; -n NAMESPACE chooses another namespace",
    )
    NO_DATA = (
        "AMB3006",
        EXIT_NO_DATA,
        "There is nothing to show: no traffic in the window, or no object of that kind.",
        "make some traffic, widen the window (--window), or look everywhere (-A)",
    )
    USAGE = (
        "AMB3007",
        EXIT_USAGE,
        "The command's arguments cannot be understood.",
        "see the command's --help",
    )
    BAD_INPUT = (
        "AMB3008",
        EXIT_INPUT,
        "A file given to the command cannot be read as what it should be.",
        "correct the file at the line named and run the command again",
    )
    TIMEOUT = (
        "AMB3009",
        EXIT_TIMEOUT,
        "What was waited for did not happen in time.",
        "the last line says what is missing; --timeout or --wait waits longer",
    )
    WRONG_MATCH = (
        "AMB3010",
        EXIT_USAGE,
        "A name stands for several objects.",
        "give the full name, with its namespace: NAMESPACE/NAME",
    )
    NOT_HERE = (
        "AMB3011",
        EXIT_UNREACHABLE,
        "The command needs root: it enters the network namespaces of the lab's nodes.",
        "run it with sudo",
    )

    NO_KUBECTL = (
        "AMB3012",
        EXIT_UNREACHABLE,
        "The cluster is reached over kubectl, which did not do what it was asked.",
        "run the same kubectl command by hand; --context and --kubeconfig choose a cluster",
    )

    STILL_USED = (
        "AMB3013",
        EXIT_ERROR,
        "Pods are in the mesh that is to be removed: they would talk in plaintext, without policy.",
        "take the namespaces out first (`ambit unenroll`), or insist with --force",
    )

    # What `check` looks at: this machine and its programs.
    KERNEL = (
        "AMB3101",
        EXIT_CHECK,
        "Each BPF feature that capture needs was tried by loading a small program; the named ones failed.",
        "use a kernel of 6.1 or newer with CONFIG_BPF_SYSCALL and CONFIG_CGROUP_BPF",
    )
    CGROUP = (
        "AMB3102",
        EXIT_CHECK,
        "Capture attaches to cgroup v2 directories; the one named is missing.",
        "mount cgroup v2 (mount -t cgroup2 none /sys/fs/cgroup) and start the mesh again",
    )
    PROGRAMS = (
        "AMB3103",
        EXIT_CHECK,
        "A process of the mesh does not run.",
        "its log says why it ended; it is started again with growing pauses",
    )
    RESTARTS = (
        "AMB3104",
        EXIT_WARNINGS,
        "A process of the mesh has ended and was started again.",
        "its log says why it ended",
    )

    # The control plane.
    CONTROLLER = (
        "AMB3111",
        EXIT_CHECK,
        "The controller does not answer on its admin port.",
        "look at its log",
    )
    CONTROLLER_READY = (
        "AMB3112",
        EXIT_CHECK,
        "The controller runs, but has not read the objects yet; proxies get nothing from it.",
        "look at its log",
    )
    REFUSED_OBJECTS = (
        "AMB3113",
        EXIT_CHECK,
        "Documents that cannot be read are not in force; the last good version, if any, is.",
        "correct the document at the line named and apply it again",
    )
    WRONG_FIELDS = (
        "AMB3114",
        EXIT_CHECK,
        "An object says something that the mesh cannot put into force, so it does less than it reads.",
        "`ambit lint -f FILE` shows each field; change or remove it",
    )
    UNUSED_FIELDS = (
        "AMB3115",
        EXIT_WARNINGS,
        "An object says something that has no effect in this mesh.",
        "change or remove the field named, so that nobody relies on it",
    )
    ROOT_CERTIFICATE = (
        "AMB3116",
        EXIT_CHECK,
        "Every workload certificate ends at the root's end: without a valid root there is no traffic.",
        "replace the root before it ends",
    )
    ROOT_ENDS_SOON = (
        "AMB3117",
        EXIT_WARNINGS,
        "The root certificate ends within 60 days.",
        "replace the root before it ends",
    )

    # Each node.
    AGENT = (
        "AMB3121",
        EXIT_CHECK,
        "The node agent does not answer; new pods of the node cannot be enrolled, enrolled ones stay so.",
        "look at its log",
    )
    AGENT_READY = (
        "AMB3122",
        EXIT_CHECK,
        "The node agent runs, but cannot enrol pods yet.",
        "it names what it waits for; its log says more",
    )
    BPF = (
        "AMB3123",
        EXIT_CHECK,
        "Programs that capture traffic are not attached where they should be.",
        "restart the agent of the node: it puts them back",
    )
    BPF_NEIGHBOURS = (
        "AMB3124",
        EXIT_WARNINGS,
        "Another program is attached to the same hooks and may rewrite the same connections.",
        "find out whose it is (`bpftool prog show id ID`) and in which order both run",
    )
    BPF_FULL = (
        "AMB3125",
        EXIT_WARNINGS,
        "A BPF map is nearly full; when it is, new pods or connections are refused by name.",
        "load with a larger limit (`python3 -m bpf load --max-...`) or move pods to another node",
    )
    BPF_REFUSED = (
        "AMB3126",
        EXIT_WARNINGS,
        "The BPF programs refused connections rather than let them pass uncaptured.",
        "`ambit node config bpf NODE` shows the counters; they only ever grow",
    )
    ZTUNNEL = (
        "AMB3127",
        EXIT_CHECK,
        "ztunnel does not answer on its admin port; enrolled pods of the node have no traffic.",
        "look at its log",
    )
    ZTUNNEL_READY = (
        "AMB3128",
        EXIT_CHECK,
        "ztunnel runs, but is not ready for traffic.",
        "it names what it waits for; its log says more",
    )
    ZTUNNEL_HANDOFF = (
        "AMB3129",
        EXIT_CHECK,
        "The agent gives pods to ztunnel over a socket; no ztunnel is connected to it.",
        "look at the logs of both, the agent and the ztunnel of that node",
    )
    SYNC = (
        "AMB3130",
        EXIT_CHECK,
        "ztunnel has no connection to the controller: it works with the last state that it was told.",
        "look at both logs, the controller's and that of ztunnel on the node",
    )
    LAG = (
        "AMB3131",
        EXIT_WARNINGS,
        "ztunnel's state differs from what the controller serves: an update is on its way or was refused.",
        "run the check again; if it lasts, `ambit node config` shows what the node has",
    )
    PROXY_REFUSED = (
        "AMB3132",
        EXIT_CHECK,
        "A proxy refused a resource of the controller and keeps the version that it had.",
        "this is a defect or a version difference; look at the proxy's log",
    )
    BROKEN_POLICY = (
        "AMB3133",
        EXIT_CHECK,
        "A policy could not be decoded on the node; what it protects is refused until it can be.",
        "correct the policy named; `ambit lint` shows what is wrong with it",
    )
    CERTIFICATES = (
        "AMB3134",
        EXIT_CHECK,
        "A workload identity of the node has no valid certificate; its connections are refused.",
        "look at the controller's log for why it issued none",
    )
    CERTIFICATES_LATE = (
        "AMB3135",
        EXIT_WARNINGS,
        "Certificates are renewed at half their life; one that is past nine tenths was not.",
        "look at the log of the node's ztunnel for why it got no new one",
    )

    # The pods, and the objects that shape their traffic.
    NOT_ENROLLED = (
        "AMB3141",
        EXIT_CHECK,
        "A pod is labelled for the mesh, but its traffic is not captured.",
        "`ambit describe pod NS/NAME` shows at which step it stands",
    )
    LEFT_OUT = (
        "AMB3142",
        EXIT_WARNINGS,
        "A pod of a mesh namespace is left out for a reason other than its label.",
        "`ambit explain CODE` says what to do for each code",
    )
    POD_NOT_READY = (
        "AMB3143",
        EXIT_WARNINGS,
        "A pod of the mesh is not ready, so that its services do not send it traffic.",
        "look at the pod's own log and probes",
    )
    OLDER_CONNECTIONS = (
        "AMB3144",
        EXIT_WARNINGS,
        "Connections opened before the pod was enrolled go on without mutual TLS and policy.",
        "let them end, restart the client, or set ambit.io/plaintext-deadline on the pod",
    )
    POWERFUL_PODS = (
        "AMB3145",
        EXIT_WARNINGS,
        "A pod with such rights can undo capture on its node: it is the node's equal.",
        "drop CAP_SYS_ADMIN, CAP_BPF and privileged, unless the pod is trusted as the node is",
    )
    NO_ENDPOINTS = (
        "AMB3146",
        EXIT_WARNINGS,
        "A service of the mesh has no ready endpoint: connections to it are refused.",
        "check the service's selector and the readiness of its pods",
    )
    IDLE_POLICY = (
        "AMB3147",
        EXIT_WARNINGS,
        "A policy selects no pod, so that it protects nothing.",
        "compare its selector with the pods' labels (`ambit describe pod`)",
    )
    BLOCKED_TUNNEL = (
        "AMB3148",
        EXIT_WARNINGS,
        "A NetworkPolicy lets nobody reach the tunnel port 15008 of pods of the mesh.",
        "allow TCP 15008 to the pods in the NetworkPolicy; the mesh's own policies guard what is inside",
    )
    NO_WAYPOINT = (
        "AMB3149",
        EXIT_CHECK,
        "Something is labelled to use a waypoint that does not exist or has no ready instance.",
        "`ambit waypoint apply` makes it; or correct the label istio.io/use-waypoint",
    )

    # What `why` finds.
    SOURCE_STOPPED = (
        "AMB3201",
        EXIT_CHECK,
        "The caller cannot connect at all: it does not run, or its node's proxy is away.",
        "`ambit describe pod NS/NAME` and `ambit check` say what is missing",
    )
    NO_ENDPOINT = (
        "AMB3202",
        EXIT_CHECK,
        "The service has no endpoint that may be chosen, so that connections to it are refused.",
        "check the service's selector and the readiness of its pods",
    )
    NO_SUCH_PORT = (
        "AMB3203",
        EXIT_CHECK,
        "The service does not have the port that was asked for.",
        "use one of the service's ports, or add it to the Service",
    )
    NOT_ALLOWED = (
        "AMB3204",
        EXIT_CHECK,
        "ALLOW policies apply to the destination and none of them names the caller: all else is denied.",
        "add a rule for the caller's identity to one of the policies",
    )
    DENIED = (
        "AMB3205",
        EXIT_CHECK,
        "A DENY policy matches the connection; it wins over every ALLOW.",
        "narrow the rule so that it does not match the caller",
    )
    PLAINTEXT_REFUSED = (
        "AMB3206",
        EXIT_CHECK,
        "The destination accepts mutual TLS only (PeerAuthentication STRICT); the caller is not in the mesh.",
        "bring the caller into the mesh, or allow plaintext for the destination",
    )
    UNJUDGED = (
        "AMB3207",
        EXIT_CHECK,
        "A policy of the destination is unknown or unreadable on its node: what cannot be judged is refused.",
        "`ambit check` names the policy; `ambit lint` says what is wrong with it",
    )
    NOBODY_LISTENS = (
        "AMB3208",
        EXIT_CHECK,
        "The mesh lets the connection through, but no process of the pod listens on that address and port.",
        "start the application, correct the Service's targetPort, or listen on all addresses",
    )
    WAYPOINT_AWAY = (
        "AMB3209",
        EXIT_CHECK,
        "The destination's waypoint has no ready instance; traffic is not sent past it.",
        "`ambit waypoint status` says why; `ambit waypoint apply` makes it",
    )
    RESERVED_PORT = (
        "AMB3210",
        EXIT_CHECK,
        "The port belongs to the mesh itself (15001, 15006, 15008); no application is behind it.",
        "dial the application's own port",
    )
    DESTINATION_AWAY = (
        "AMB3211",
        EXIT_CHECK,
        "The destination's node does not answer for it.",
        "`ambit check` says what is wrong with that node",
    )
    REFUSED = (
        "AMB3212",
        EXIT_CHECK,
        "A proxy on the way refuses the connection for the reason given.",
        "the reason says whose doing it is; the logs of the nodes named say more",
    )

    NO_ROUTE = (
        "AMB3213",
        EXIT_CHECK,
        "The waypoint answers the request itself with an error: no rule matches it, or a rule says so.",
        "look at the route named; --method, --path, --host and --header say what is sent",
    )

    def __init__(self, code: str, exit_code: int, meaning: str, remedy: str) -> None:
        self.code = code
        self.exit_code = exit_code
        self.meaning = meaning
        self.remedy = remedy

    def __str__(self) -> str:
        return self.code


class CliError(Exception):
    """A command cannot do what it was asked for; says what and why, and what to do next."""

    def __init__(self, code: Code, what: str, *, remedy: str = "") -> None:
        super().__init__(what)
        self.code = code
        self.what = what
        self.remedy = remedy or code.remedy

    def __str__(self) -> str:
        return f"{self.code}: {self.what}\n  what to do: {self.remedy}"
