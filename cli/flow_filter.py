# SPDX-License-Identifier: Apache-2.0
"""Filters of flows as hubble has them: a flag repeated is OR, different flags are AND, --not negates.

Pure; the flags of a command line come in their order.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

from cli.flow_log import Flow

VERDICTS = ("forwarded", "denied", "failed")


@dataclass(frozen=True, slots=True)
class Filter:
    """One flag with one value."""

    flag: str
    value: str
    negated: bool


def _named(text: str, value: str) -> bool:
    """Whether `namespace/workload` is the pod, or belongs to the Deployment, that a person named.

    A name ends where a pod's generated part begins: `web` means `web` and `web-5f7d-x2k`, not `web2`.
    """
    namespace, _, name = text.rpartition("/")
    wanted_namespace, _, wanted = value.rpartition("/")
    if wanted_namespace and wanted_namespace != namespace:
        return False
    return name == wanted or name.startswith(f"{wanted}-")


def _address(text: str) -> str:
    return text.rpartition(":")[0].strip("[]")


def _within(text: str, value: str) -> bool:
    try:
        return ip_address(_address(text)) in ip_network(value, strict=False)
    except ValueError:
        return False


def _from(test: Callable[[Flow, str], bool], to: Callable[[Flow, str], bool]) -> Callable[[Flow, str], bool]:
    return lambda flow, value: test(flow, value) or to(flow, value)


def _from_pod(flow: Flow, value: str) -> bool:
    return _named(flow.source, value)


def _to_pod(flow: Flow, value: str) -> bool:
    return _named(flow.destination, value)


def _from_namespace(flow: Flow, value: str) -> bool:
    return flow.get("src.namespace") == value


def _to_namespace(flow: Flow, value: str) -> bool:
    return flow.get("dst.namespace") == value


def _from_ip(flow: Flow, value: str) -> bool:
    return _within(flow.get("src.addr"), value)


def _to_ip(flow: Flow, value: str) -> bool:
    return _within(flow.target, value)


def _from_identity(flow: Flow, value: str) -> bool:
    return value in flow.get("src.identity")


def _to_identity(flow: Flow, value: str) -> bool:
    return value in flow.get("dst.identity")


def _service(flow: Flow, value: str) -> bool:
    host = flow.get("dst.service")
    namespace, _, name = value.rpartition("/")
    words = host.split(".")
    return bool(host) and (
        host == value or (words[0] == name and (not namespace or words[1:2] == [namespace]))
    )


def _port(flow: Flow, value: str) -> bool:
    return flow.target.rpartition(":")[2] == value


TESTS: dict[str, tuple[Callable[[Flow, str], bool], str, str]] = {
    "--from": (_from_pod, "POD", "from this pod or Deployment ([NAMESPACE/]NAME)"),
    "--to": (_to_pod, "POD", "to this pod or Deployment"),
    "--pod": (_from(_from_pod, _to_pod), "POD", "from or to it"),
    "--from-namespace": (_from_namespace, "NS", "from this namespace"),
    "--to-namespace": (_to_namespace, "NS", "to this namespace"),
    "--namespace": (_from(_from_namespace, _to_namespace), "NS", "from or to it"),
    "--from-ip": (_from_ip, "CIDR", "from this address or range"),
    "--to-ip": (_to_ip, "CIDR", "to it"),
    "--ip": (_from(_from_ip, _to_ip), "CIDR", "from or to it"),
    "--from-identity": (_from_identity, "TEXT", "from an identity that holds this text"),
    "--to-identity": (_to_identity, "TEXT", "to one"),
    "--identity": (_from(_from_identity, _to_identity), "TEXT", "from or to one"),
    "--service": (_service, "SVC", "through this service ([NAMESPACE/]NAME or DNS name)"),
    "--port": (_port, "PORT", "to this port of the application"),
    "--verdict": (lambda f, v: f.verdict == v, "VERDICT", f"{', '.join(VERDICTS)}"),
    "--reason": (lambda f, v: f.reason == v, "REASON", "ended for this reason (complete, policy_denied...)"),
    "--direction": (lambda f, v: f.direction == v, "inbound|outbound", "as seen from the pod that reports"),
    "--node": (lambda f, v: f.node == v, "NODE", "reported by this node"),
}
SHORT = {"--namespace": "-n"}


class _Append(argparse.Action):
    """Keep filters in their order; a `--not` before one negates it."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        flag = self.option_strings[-1]
        filters = [*(getattr(namespace, "filters", None) or [])]
        if flag in ("--ip", "--from-ip", "--to-ip"):
            try:
                ip_network(str(values), strict=False)
            except ValueError:
                parser.error(f"{flag}: {values!r} is no address or range")
        if flag == "--verdict" and values not in VERDICTS:
            parser.error(f"{flag}: {values!r} is none of {', '.join(VERDICTS)}")
        filters.append(Filter(flag, str(values), bool(getattr(namespace, "negate", False))))
        namespace.filters = filters
        namespace.negate = False


def add_filters(parser: argparse.ArgumentParser) -> None:
    """Declare every filter and --not."""
    group = parser.add_argument_group("filters (one repeated: or; different ones: and)")
    for flag, (_, metavar, text) in TESTS.items():
        names = [SHORT[flag], flag] if flag in SHORT else [flag]
        group.add_argument(*names, dest="filters", action=_Append, metavar=metavar, help=text)
    group.add_argument("--not", dest="negate", action="store_true", help="negate the filter that follows")


def matches(flow: Flow, filters: Sequence[Filter]) -> bool:
    """Whether a flow is meant: for each flag one of its values holds, and none of its negated ones."""
    positive: dict[str, bool] = {}
    for one in filters:
        holds = TESTS[one.flag][0](flow, one.value)
        if one.negated:
            if holds:
                return False
            continue
        positive[one.flag] = positive.get(one.flag, False) or holds
    return all(positive.values())
