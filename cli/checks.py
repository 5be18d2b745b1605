# SPDX-License-Identifier: Apache-2.0
"""The checks of programs, control plane and nodes: what must run for the mesh to work at all."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from cli.check_engine import Check, Outcome, State, failed, ok, warned
from cli.checks_pods import pod_checks
from cli.codes import CliError, Code
from cli.facts import Facts
from cli.output import plural, span
from cli.target import CONTROLLER, Part

ROOT_SOON_S = 60 * 86400.0
LATE = 0.9
"""Share of its life after which a certificate should long have been renewed."""
FULL = 0.8
LAG_PAUSE_S = 0.5
"""Between two looks at a difference that may be an update on its way."""
REFUSALS = {
    "record_quota": "too many unfinished connects of one pod",
    "no_storage": "no memory for a connection's record",
    "no_capture_port": "no capture port free",
    "no_outbound": "no outbound listener of ztunnel",
    "no_inbound": "no inbound listener of ztunnel",
    "no_hbone": "no HBONE listener of ztunnel",
    "dial_quota": "too many dials of ztunnel into one pod",
    "probe_quota": "too many probes at once",
    "listener_full": "too many listeners of one pod",
    "listener_failed": "a listener could not be entered",
}
"""Counters of the BPF programs that mean a connection was refused for want of something."""


def all_checks(facts: Facts) -> list[Check]:
    """Return every check of a mesh in the order in which they are shown."""
    checks = [*_machine(facts), *_control_plane(facts)]
    for node in facts.target.nodes():
        checks += _node(facts, node)
    return [*checks, *pod_checks(facts)]


def _machine(facts: Facts) -> list[Check]:
    place = "machine"
    return [
        Check(
            key="kernel",
            category=place,
            title="the kernel has every BPF feature that capture needs",
            run=partial(_kernel, facts),
        ),
        Check(
            key="cgroups",
            category=place,
            title="the nodes' cgroups are there",
            run=partial(_cgroups, facts),
        ),
        Check(
            key="programs",
            category=place,
            title="every process of the mesh runs",
            run=partial(_programs, facts),
        ),
        Check(
            key="restarts",
            category=place,
            title="no process of the mesh had to be restarted",
            run=partial(_restarts, facts),
            needs=("programs",),
        ),
    ]


def _kernel(facts: Facts) -> Outcome:
    try:
        features: Mapping[str, str] = facts.target.bpf(("probe",)).get("features", {})
    except CliError as error:
        if error.code is not Code.NOT_FOUND:
            raise
        return Outcome(state=State.SKIPPED, details=(f"because {error.what}",))
    missing = [f"{name}: {result}" for name, result in features.items() if result != "ok"]
    return failed(Code.KERNEL, *missing) if missing else ok(plural(len(features), "feature"))


def _cgroups(facts: Facts) -> Outcome:
    missing = facts.target.missing_cgroups()
    return failed(Code.CGROUP, *(f"{path} does not exist" for path in missing)) if missing else ok()


def _programs(facts: Facts) -> Outcome:
    programs = facts.target.programs()
    down = [p for p in programs if not p.running]
    if not programs:
        return failed(
            Code.PROGRAMS,
            f"the mesh is not here: none of its processes runs in {facts.target.title}",
            remedy=f"`{facts.target.command('install')}` puts it there",
        )
    return (
        failed(
            Code.PROGRAMS,
            *(f"{p.name} is down{f': {p.why}' if p.why else ''}" for p in down),
            remedy="; ".join(f"`{facts.target.command(f'lab logs {p.name} --tail 20')}`" for p in down),
        )
        if down
        else ok(plural(len(programs), "process", "processes"))
    )


def _restarts(facts: Facts) -> Outcome:
    again = [p for p in facts.target.programs() if p.restarts]
    return (
        warned(
            Code.RESTARTS,
            *(
                f"{p.name}: {plural(p.restarts, 'restart')}{f', last: {p.why}' if p.why else ''}"
                for p in again
            ),
        )
        if again
        else ok()
    )


def _control_plane(facts: Facts) -> list[Check]:
    place = "control plane"

    def check(key: str, title: str, run: Any, *needs: str) -> Check:
        return Check(key=key, category=place, title=title, run=partial(run, facts), needs=needs)

    return [
        check("controller", "the controller answers", _controller, "programs"),
        check("controller-ready", "the controller serves the objects", _controller_ready, "controller"),
        check("objects", "every object can be read", _refused_objects, "controller"),
        check("fields", "every field is in force", _wrong_fields, "controller"),
        check("unused", "no field is without effect", _unused_fields, "controller"),
        check("root", "the root certificate is valid", _root, "controller-ready"),
    ]


def _controller(facts: Facts) -> Outcome:
    try:
        facts.target.request(CONTROLLER, "/ready")
    except CliError as error:
        logs = facts.target.command("lab logs controller --tail 20")
        return failed(Code.CONTROLLER, error.what, remedy=f"look at its log: `{logs}`")
    return ok()


def _controller_ready(facts: Facts) -> Outcome:
    answer = facts.target.request(CONTROLLER, "/ready")
    if answer.status != 200:
        return failed(Code.CONTROLLER_READY, answer.text)
    registry = facts.registry()
    return ok(
        ", ".join(
            plural(len(registry[key]), word, several)
            for key, word, several in (
                ("workloads", "workload", "workloads"),
                ("services", "service", "services"),
                ("policies", "policy", "policies"),
            )
        )
    )


def _refused_objects(facts: Facts) -> Outcome:
    rows = facts.problems()["rejected"]
    lines = [f"{row['file']}:{row['line']}: {row['reason']}" for row in rows]
    return failed(Code.REFUSED_OBJECTS, *lines) if lines else ok()


def problem_line(facts: Facts, row: Mapping[str, Any]) -> str:
    """Write a problem of the translators as FILE:LINE: object: field: reason, by the file of who wrote it."""
    path = ".".join(str(step) for step in row["path"])
    file, line = row["file"], row["line"]
    for raw in facts.objects().objects.values():
        if str(raw.key) == row["object"]:
            written = facts.target.written(raw)
            if written is not raw:
                file, line = written.file, written.line_of(tuple(row["path"]))
    return f"{file}:{line}: {row['object']}: {path}: {row['reason']}"


def _of_severity(facts: Facts, severity: str) -> list[str]:
    return [problem_line(facts, r) for r in facts.problems()["problems"] if r["severity"] == severity]


def _wrong_fields(facts: Facts) -> Outcome:
    lines = _of_severity(facts, "error")
    return failed(Code.WRONG_FIELDS, *lines) if lines else ok()


def _unused_fields(facts: Facts) -> Outcome:
    lines = _of_severity(facts, "warning")
    return warned(Code.UNUSED_FIELDS, *lines) if lines else ok()


def root_ends(pem: str) -> list[float]:
    """Return when each certificate of a bundle ends, in seconds of the epoch, earliest first."""
    from cryptography import x509

    found = x509.load_pem_x509_certificates(pem.encode())
    return sorted(c.not_valid_after_utc.timestamp() for c in found)


def _root(facts: Facts) -> Outcome:
    for item in facts.of("ConfigMap"):
        pem = (item.data.get("data") or {}).get("root-cert.pem")
        if item.name != "istio-ca-root-cert" or not pem:
            continue
        left = root_ends(str(pem))[-1] - time.time()
        if left <= 0:
            return failed(Code.ROOT_CERTIFICATE, f"it ended {span(-left)} ago")
        if left < ROOT_SOON_S:
            return warned(Code.ROOT_ENDS_SOON, f"it ends in {span(left)}")
        return ok(f"ends in {span(left)}")
    return failed(Code.ROOT_CERTIFICATE, "the controller has given it to no namespace")


def _node(facts: Facts, node: str) -> list[Check]:
    def check(key: str, title: str, run: Any, *needs: str) -> Check:
        return Check(
            key=f"{node}/{key}",
            category=f"node {node}",
            title=title,
            run=partial(run, facts, node),
            needs=tuple(
                need if need in ("programs", "controller-ready") else f"{node}/{need}" for need in needs
            ),
        )

    return [
        check("agent", "the node agent answers and is ready", _agent),
        check("bpf", "the BPF programs are attached", _bpf, "agent"),
        check("neighbours", "no foreign program is on the same hooks", _neighbours, "bpf"),
        check("room", "the BPF maps have room", _room, "agent"),
        check("refused", "no connection was refused for want of a record or listener", _refused, "agent"),
        check("ztunnel", "ztunnel answers and is ready", _ztunnel),
        check("handoff", "ztunnel takes pods from the agent", _handoff, "agent", "ztunnel"),
        check("sync", "ztunnel is connected to the controller", _sync, "ztunnel", "controller-ready"),
        check("lag", "ztunnel has the state that the controller serves", _lag, "sync"),
        check("refusals", "ztunnel took every resource", _proxy_refused, "sync"),
        check("policies", "ztunnel can judge by every policy", _broken, "ztunnel"),
        check("certificates", "every identity of the node has a certificate", _certificates, "ztunnel"),
    ]


def _agent(facts: Facts, node: str) -> Outcome:
    try:
        answer = facts.target.request(Part("agent", node), "/healthz/ready")
    except CliError as error:
        return failed(Code.AGENT, error.what, remedy=_log(facts, "agent", node))
    return ok() if answer.status == 200 else failed(Code.AGENT_READY, answer.text)


def _log(facts: Facts, part: str, node: str) -> str:
    return f"look at its log: `{facts.target.command(f'lab logs {part}@{node} --tail 20')}`"


def _bpf(facts: Facts, node: str) -> Outcome:
    report = facts.target.bpf(("status",), node)
    restart = facts.target.command(f"lab restart agent {node}")
    if report.get("missing"):
        missing = ", ".join(map(str, report["missing"]))
        return failed(
            Code.BPF, f"missing: {missing}", remedy=f"restart the agent, it puts them back: `{restart}`"
        )
    if not report.get("programs"):
        return failed(Code.BPF, str(report.get("message", "none is loaded")), remedy=f"`{restart}`")
    return ok(plural(len(report["programs"]), "program"))


def _neighbours(facts: Facts, node: str) -> Outcome:
    report = facts.target.bpf(("status",), node)
    lines = [
        ", ".join(f"{key} {value}" for key, value in row.items()) for row in report.get("neighbours") or ()
    ]
    return warned(Code.BPF_NEIGHBOURS, *lines) if lines else ok()


def _room(facts: Facts, node: str) -> Outcome:
    maps = facts.ask(Part("agent", node), "/maps")["maps"]
    lines = [
        f"{name}: {row['entries']} of {row['capacity']}"
        for name, row in maps.items()
        if row["capacity"] and row["entries"] > FULL * row["capacity"]
    ]
    return warned(Code.BPF_FULL, *lines) if lines else ok()


def _refused(facts: Facts, node: str) -> Outcome:
    counters = facts.ask(Part("agent", node), "/maps")["counters"]
    lines = [
        f"{counters[name]} times: {words} ({name})" for name, words in REFUSALS.items() if counters.get(name)
    ]
    return warned(Code.BPF_REFUSED, *lines) if lines else ok()


def _ztunnel(facts: Facts, node: str) -> Outcome:
    try:
        answer = facts.target.request(Part("ztunnel-ready", node), "/healthz/ready")
        facts.ask(Part("ztunnel", node), "/status")
    except CliError as error:
        return failed(Code.ZTUNNEL, error.what, remedy=_log(facts, "ztunnel", node))
    return ok() if answer.status == 200 else failed(Code.ZTUNNEL_READY, answer.text)


def _handoff(facts: Facts, node: str) -> Outcome:
    sessions = facts.ask(Part("agent", node), "/ztunnel")
    if not any(row["ready"] for row in sessions):
        return failed(Code.ZTUNNEL_HANDOFF, "no ztunnel has taken over the node's pods")
    return ok(plural(sum(row["pods"] for row in sessions), "pod"))


def _sync(facts: Facts, node: str) -> Outcome:
    state = facts.ask(Part("ztunnel", node), "/status")["controller"]
    if not state["connected"]:
        return failed(Code.SYNC, f"{state['address']}: {state['last_error'] or 'not connected'}")
    return ok() if state["synced"] else failed(Code.SYNC, "it has not received the first state yet")


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


def _camel_keys(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            _camel(str(key)) if "/" not in str(key) else str(key): _camel_keys(v) for key, v in value.items()
        }
    if isinstance(value, list):
        return [_camel_keys(entry) for entry in value]
    return value


_NAMES: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "workloads": lambda row: str(row["uid"]),
    "services": lambda row: f"{row['namespace']}/{row['hostname']}",
    "policies": lambda row: f"{row['namespace']}/{row['name']}",
}


def differences(registry: Mapping[str, Any], dump: Mapping[str, Any]) -> list[str]:
    """Compare a node's state with the controller's: what it has older, and what is no more."""
    found = []
    for kind, name in _NAMES.items():
        served = {name(row): _camel_keys(row) for row in registry[kind]}
        for row in dump[kind]:
            key = name(row)
            if key not in served:
                found.append(f"{kind}: {key} is no more")
            elif served[key] != row:
                found.append(f"{kind}: {key} has changed")
    return found


def _lag(facts: Facts, node: str) -> Outcome:
    found = differences(facts.registry(), facts.dump(node))
    if found:
        time.sleep(LAG_PAUSE_S)
        fresh = Facts(facts.target)
        found = differences(fresh.registry(), fresh.dump(node))
    return warned(Code.LAG, *found) if found else ok()


def _proxy_refused(facts: Facts, node: str) -> Outcome:
    rows = [row for row in facts.ask(CONTROLLER, "/debug/proxies") if row["node"] == node]
    refused = {name: why for row in rows for name, why in row["refused"].items()}
    lines = [f"{name}: {why}" for name, why in refused.items()]
    return failed(Code.PROXY_REFUSED, *lines) if lines else ok()


def _broken(facts: Facts, node: str) -> Outcome:
    broken = facts.dump(node)["brokenPolicies"]
    return failed(Code.BROKEN_POLICY, *(f"{n}: {why}" for n, why in broken.items())) if broken else ok()


def _certificates(facts: Facts, node: str) -> Outcome:
    rows = facts.ask(Part("ztunnel", node), "/certs")["certificates"]
    now = time.time()
    bad, late = [], []
    for row in rows:
        if row["state"] != "available":
            bad.append(f"{row['identity']} has none")
        elif row["expirationTime"] <= now:
            bad.append(f"{row['identity']}: ended {span(now - row['expirationTime'])} ago")
        elif now > row["validFrom"] + LATE * (row["expirationTime"] - row["validFrom"]):
            late.append(f"{row['identity']}: ends in {span(row['expirationTime'] - now)}")
    if bad:
        return failed(Code.CERTIFICATES, *bad)
    return warned(Code.CERTIFICATES_LATE, *late) if late else ok(plural(len(rows), "identity", "identities"))
