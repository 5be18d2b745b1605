# SPDX-License-Identifier: Apache-2.0
"""`ambit waypoint`: the L7 proxies of namespaces; what `istioctl waypoint` does, under the same names.

A waypoint is its Gateway: the controller derives what runs from it. `apply` says that it
is there only when it serves.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from typing import Any

from cli.codes import EXIT_ERROR, EXIT_NO_DATA, EXIT_OK, CliError, Code
from cli.options import add_common, duration
from cli.output import Cell, dump, emit, say
from cli.target import Target, open_target
from mesh.config.objects import RawObject

CLASS = "istio-waypoint"
WAYPOINT_FOR = "istio.io/waypoint-for"
USE_WAYPOINT = "istio.io/use-waypoint"
REVISION = "istio.io/rev"
TRAFFIC = ("service", "workload", "all", "none")
DEFAULT_NAME = "waypoint"
DEFAULT_WAIT_S = 90.0
POLL_S = 0.2
_HEADERS = ("NAME", "REVISION", "TRAFFIC TYPE", "PROGRAMMED")
_STATUS_HEADERS = ("NAMESPACE", "NAME", "STATUS", "TYPE", "REASON", "MESSAGE")
LABELLED = ("Namespace", "Service", "ServiceEntry", "Pod", "WorkloadEntry")
"""Kinds that name a waypoint by their label."""


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the verbs."""
    verbs = parser.add_subparsers(
        dest="waypoint_verb", metavar="VERB", required=True, parser_class=type(parser)
    )

    def verb(name: str, about: str, *, formats: tuple[str, ...] = ()) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.")
        add_common(added, formats=formats)
        added.add_argument("-n", "--namespace", default="default", metavar="NS")
        return added

    listing = ("table", "json", "yaml")
    for name, about in (("generate", "print a waypoint's Gateway"), ("apply", "make or change a waypoint")):
        added = verb(name, about)
        added.add_argument("--name", default=DEFAULT_NAME, help=f"its name (default {DEFAULT_NAME})")
        added.add_argument(
            "--for", dest="serves", choices=TRAFFIC, help="what it serves, by how it is addressed"
        )
        added.add_argument("-r", "--revision", default="", help="the controller that runs it")
    added.add_argument(
        "--enroll-namespace", action="store_true", help="label the namespace to use the waypoint"
    )
    added.add_argument(
        "--overwrite", action="store_true", help="replace another waypoint in the namespace's label"
    )
    _add_wait(added)
    listed = verb("list", "show the waypoints of a namespace", formats=listing)
    listed.add_argument("-A", "--all-namespaces", action="store_true", help="every namespace")
    state = verb("status", "show what became of waypoints; 1 when one does not serve", formats=listing)
    state.add_argument("names", nargs="*", metavar="NAME", help="only these")
    _add_wait(state)
    gone = verb("delete", "delete waypoints; what used them goes on at L4")
    gone.add_argument("names", nargs="*", metavar="NAME")
    gone.add_argument("--all", action="store_true", help="every waypoint of the namespace")


def _add_wait(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--wait", action="store_true", help="until it serves")
    parser.add_argument(
        "--waypoint-timeout",
        type=duration,
        default=DEFAULT_WAIT_S,
        metavar="DURATION",
        help=f"how long (default {DEFAULT_WAIT_S:.0f}s)",
    )


def run(options: argparse.Namespace) -> int:
    """Run a verb and return its exit code."""
    if options.waypoint_verb == "generate":
        print(dump(gateway_of(options), "yaml"))
        return EXIT_OK
    target = open_target(options)
    return run_on(target, options)


def run_on(target: Target, options: argparse.Namespace) -> int:
    """Run a verb that needs a mesh."""
    verbs = {"apply": _apply, "list": _list, "status": _status, "delete": _delete}
    return verbs[options.waypoint_verb](target, options)


def gateway_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the Gateway that the options describe."""
    labels = {}
    if options.serves:
        labels[WAYPOINT_FOR] = options.serves
    if options.revision:
        labels[REVISION] = options.revision
    metadata: dict[str, Any] = {"name": options.name, "namespace": options.namespace}
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": metadata | ({"labels": labels} if labels else {}),
        "spec": {
            "gatewayClassName": CLASS,
            "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}],
        },
    }


def _waypoints(target: Target, namespace: str | None) -> list[RawObject]:
    found = [
        item
        for item in target.objects().of("Gateway")
        if item.spec.get("gatewayClassName") == CLASS and namespace in (None, item.namespace)
    ]
    return sorted(found, key=lambda item: (item.namespace, item.name))


def _programmed(gateway: RawObject) -> Mapping[str, Any]:
    """Return the condition that says whether it serves; made up while nobody has written one."""
    for condition in gateway.status.get("conditions") or ():
        if condition.get("type") == "Programmed":
            return dict(condition)
    message = "The controller has not seen it yet"
    if REVISION in gateway.labels:
        message = f"The controller of revision {gateway.labels[REVISION]} has not seen it yet"
    return {"type": "Programmed", "status": "Unknown", "reason": "Pending", "message": message}


# --- apply


def _apply(target: Target, options: argparse.Namespace) -> int:
    namespace, name = options.namespace, options.name
    found = target.objects()
    for item in found.of("Gateway"):
        if (item.namespace, item.name) == (namespace, name) and item.spec.get("gatewayClassName") != CLASS:
            raise CliError(
                Code.USAGE,
                f"Gateway {namespace}/{name} exists and is of class {item.spec.get('gatewayClassName')}",
                remedy="give the waypoint another --name",
            )
    if options.enroll_namespace:
        _check_enrolment(found.of("Namespace"), namespace, name, overwrite=options.overwrite)
    print(f"waypoint {namespace}/{name} {target.apply(_kept(found.of('Gateway'), gateway_of(options)))}")
    if options.wait:
        _wait(target, namespace, [name], options.waypoint_timeout)
        say(f"waypoint {namespace}/{name} serves")
    # Last, so that nothing is sent to a waypoint that does not serve yet.
    if options.enroll_namespace:
        target.set_labels("Namespace", "", namespace, [f"{USE_WAYPOINT}={name}"])
        print(f"namespace {namespace} uses waypoint {name}")
    else:
        hint = f"`{target.command(f'waypoint apply -n {namespace} --name {name} --enroll-namespace')}`"
        say(f"nothing uses it yet but what is labelled {USE_WAYPOINT}={name}; {hint} labels the namespace")
    return EXIT_OK


def _check_enrolment(namespaces: Sequence[RawObject], namespace: str, name: str, *, overwrite: bool) -> None:
    labels = {item.name: item.labels for item in namespaces}
    if namespace not in labels:
        raise CliError(
            Code.NOT_FOUND, f"namespace {namespace} does not exist", remedy="apply a Namespace of that name"
        )
    other = labels[namespace].get(USE_WAYPOINT, name)
    if other != name and not overwrite:
        raise CliError(
            Code.USAGE,
            f"namespace {namespace} uses waypoint {other}",
            remedy="--overwrite replaces it; without --enroll-namespace label single Services",
        )


def _kept(gateways: Sequence[RawObject], wanted: dict[str, Any]) -> dict[str, Any]:
    """Keep what an existing Gateway says beside what we set: other labels, annotations, admitted routes."""
    for item in gateways:
        metadata = wanted["metadata"]
        if (item.namespace, item.name) != (metadata["namespace"], metadata["name"]):
            continue
        data = {key: value for key, value in item.data.items() if key != "status"}
        data["metadata"] = {**item.metadata, "labels": {**item.labels, **metadata.get("labels", {})}}
        if not data["metadata"]["labels"]:
            del data["metadata"]["labels"]
        return data
    return wanted


def _wait(target: Target, namespace: str, names: Sequence[str], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        items = [item for item in _waypoints(target.fresh(), namespace) if not names or item.name in names]
        lacking = [item for item in items if _programmed(item)["status"] != "True"]
        missing = set(names) - {item.name for item in items}
        if not lacking and not missing:
            return
        if time.monotonic() >= deadline:
            why = "; ".join(
                [f"{item.namespace}/{item.name}: {_programmed(item)['message']}" for item in lacking]
                + [f"{namespace}/{name} does not exist" for name in sorted(missing)]
            )
            remedy = f"`{target.command(f'lab get pods -n {namespace}')}` shows its pods"
            raise CliError(Code.TIMEOUT, f"not serving after {timeout_s:g} s: {why}", remedy=remedy)
        time.sleep(POLL_S)


# --- list, status


def _list(target: Target, options: argparse.Namespace) -> int:
    items = _waypoints(target, None if options.all_namespaces else options.namespace)
    if not items and options.output == "table":
        say("No waypoints found.")
        return EXIT_NO_DATA
    rows = []
    for item in items:
        status = str(_programmed(item)["status"])
        row: list[str | Cell] = [
            item.name,
            item.labels.get(REVISION, "default"),
            item.labels.get(WAYPOINT_FOR, "service"),
            Cell(status, "green" if status == "True" else "red"),
        ]
        rows.append([item.namespace, *row] if options.all_namespaces else row)
    headers = ("NAMESPACE", *_HEADERS) if options.all_namespaces else _HEADERS
    emit(options, "WaypointList", [_plain(item) for item in items], headers, rows)
    return EXIT_OK if items else EXIT_NO_DATA


def _plain(item: RawObject) -> dict[str, Any]:
    condition = _programmed(item)
    return {
        "namespace": item.namespace,
        "name": item.name,
        "revision": item.labels.get(REVISION, "default"),
        "trafficType": item.labels.get(WAYPOINT_FOR, "service"),
        "programmed": condition["status"],
        "reason": condition.get("reason", ""),
        "message": condition.get("message", ""),
    }


def _status(target: Target, options: argparse.Namespace) -> int:
    _find(target, options.namespace, options.names)
    if options.wait:
        _wait(target, options.namespace, options.names, options.waypoint_timeout)
        target = target.fresh()
    items = _find(target, options.namespace, options.names)
    if not items and options.output == "table":
        say("No waypoints found.")
        return EXIT_NO_DATA
    rows = []
    for item in items:
        condition = _programmed(item)
        status = str(condition["status"])
        cell = Cell(status, "green" if status == "True" else "red")
        words = (str(condition.get("reason", "")), str(condition.get("message", "")))
        rows.append((item.namespace, item.name, cell, "Programmed", *words))
    emit(options, "WaypointList", [_plain(item) for item in items], _STATUS_HEADERS, rows)
    if not items:
        return EXIT_NO_DATA
    return EXIT_OK if all(_programmed(item)["status"] == "True" for item in items) else EXIT_ERROR


def _find(target: Target, namespace: str, names: Sequence[str]) -> list[RawObject]:
    """Return the waypoints of a namespace, or those with these names.

    Raises:
        CliError: there is none of a name, or it is no waypoint.
    """
    found = {item.name: item for item in _waypoints(target, namespace)}
    for name in names:
        if name not in found:
            known = f"; there are {', '.join(sorted(found))}" if found else ""
            raise CliError(Code.NOT_FOUND, f"there is no waypoint {namespace}/{name}{known}")
    return [found[name] for name in names] if names else list(found.values())


# --- delete


def _delete(target: Target, options: argparse.Namespace) -> int:
    if bool(options.names) == options.all:
        raise CliError(Code.USAGE, "name the waypoints to delete, or give --all")
    items = _find(target, options.namespace, options.names)
    if not items:
        say("No waypoints found.")
        return EXIT_NO_DATA
    for item in items:
        target.delete("Gateway", item.namespace, item.name)
        print(f"waypoint {item.namespace}/{item.name} deleted")
    for user in _users(target, items):
        say(f"{user} still names it: its traffic goes past at L4, without L7 policy, until a new one serves")
    return EXIT_OK


def _users(target: Target, gone: Sequence[RawObject]) -> list[str]:
    """Name what is labelled to use one of these waypoints."""
    keys = {(item.namespace, item.name) for item in gone}
    found = []
    for kind in LABELLED:
        for item in target.objects().of(kind):
            own = item.name if kind == "Namespace" else item.namespace
            namespace = item.labels.get(f"{USE_WAYPOINT}-namespace") or own
            if (namespace, item.labels.get(USE_WAYPOINT, "")) in keys:
                where = item.name if kind == "Namespace" else f"{item.namespace}/{item.name}"
                found.append(f"{kind.lower()} {where}")
    return found
