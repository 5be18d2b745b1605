# SPDX-License-Identifier: Apache-2.0
"""What the two words of `ambit why SRC DST[:PORT]` mean: a pod, and addresses with a port."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from cli.codes import CliError, Code
from cli.facts import Facts, Pod

Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """What is asked for."""

    kind: str
    """service, pod or address."""
    name: str
    """`namespace/name`, or the address."""
    port: int
    addresses: tuple[Address, ...]
    """As the name resolves to; of a headless service its endpoints."""
    service: Mapping[str, Any] | None = None
    """The service as the controller serves it."""
    headless: bool = False


def split_port(text: str) -> tuple[str, int | None]:
    """Split `NAME:PORT`, `IP:PORT`, `[IPv6]:PORT`, and leave a bare IPv6 address whole.

    Raises:
        CliError: the port is none.
    """
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        digits = rest.removeprefix(":")
    elif text.count(":") > 1:
        return text, None
    else:
        host, _, digits = text.partition(":")
    if not digits:
        return host, None
    if not (digits.isascii() and digits.isdigit() and 0 < int(digits) < 65536):
        raise CliError(Code.USAGE, f"{digits!r} is no port")
    return host, int(digits)


def find_destination(facts: Facts, text: str, namespace: str) -> Destination:
    """Say what DST means to a client in a namespace.

    Raises:
        CliError: nothing has the name, or its port is not clear.
    """
    name, port = split_port(text)
    word, slash, rest = name.partition("/")
    if slash and word in ("pod", "po"):
        return _pod(facts, facts.pod(rest, namespace), port)
    if slash and word in ("deploy", "deployment"):
        return _pod(facts, facts.pod(rest, namespace), port)
    if slash and word in ("svc", "service"):
        name = rest
    try:
        return _address(facts, ip_address(name), port)
    except ValueError:
        pass
    service = find_service(facts, name, namespace)
    if service is not None:
        return _service(facts, service, port)
    try:
        return _pod(facts, facts.pod(name, None if "/" in name else namespace), port)
    except CliError as error:
        if error.code is not Code.NOT_FOUND:
            raise
        raise CliError(
            Code.NOT_FOUND,
            f"{name} is no service, pod or Deployment that a pod of namespace {namespace} can name so",
            remedy="write NAMESPACE/NAME, pod/NAME, svc/NAME, a DNS name, or an address",
        ) from error


def find_service(facts: Facts, name: str, namespace: str) -> Mapping[str, Any] | None:
    """Find a service by NS/NAME, NAME, NAME.NS or its whole DNS name."""
    host = name.removesuffix(".").lower()
    place, slash, short = host.partition("/")
    words = host.split(".")
    for row in facts.registry()["services"]:
        own = (row["namespace"], row["name"])
        if slash and own == (place, short):
            return dict(row)
        if not slash and (
            row["hostname"] == host
            or own == (namespace, host)
            or (len(words) in (2, 3) and own == (words[1], words[0]) and words[2:] in ([], ["svc"]))
        ):
            return dict(row)
    return None


def _service(facts: Facts, service: Mapping[str, Any], port: int | None) -> Destination:
    key = f"{service['namespace']}/{service['name']}"
    ports = [int(row["service_port"]) for row in service["ports"]]
    addresses = tuple(ip_address(row["address"]) for row in service["addresses"])
    headless = not addresses
    if headless:
        full = f"{service['namespace']}/{service['hostname']}"
        members = [w for w in facts.registry()["workloads"] if full in w["services"] and w["healthy"]]
        addresses = tuple(ip_address(a) for w in members for a in w["addresses"])
    return Destination(
        kind="service",
        name=key,
        port=port if port is not None else _only(ports, f"service {key}"),
        addresses=addresses,
        service=service,
        headless=headless,
    )


def _only(ports: Sequence[int], what: str) -> int:
    if len(set(ports)) == 1:
        return ports[0]
    known = ", ".join(map(str, sorted(set(ports)))) or "none"
    raise CliError(Code.USAGE, f"which port of {what}?", remedy=f"append :PORT; its ports are {known}")


def _pod(facts: Facts, pod: Pod, port: int | None) -> Destination:
    ports = [
        int(p["containerPort"])
        for container in pod.raw.spec.get("containers") or ()
        for p in container.get("ports") or ()
        if p.get("protocol", "TCP") == "TCP"
    ]
    return Destination(
        kind="pod",
        name=pod.key,
        port=port if port is not None else _only(ports, f"pod {pod.key}"),
        addresses=tuple(ip_address(a) for a in pod.addresses),
    )


def _address(facts: Facts, address: Address, port: int | None) -> Destination:
    for row in facts.registry()["services"]:
        if any(ip_address(a["address"]) == address for a in row["addresses"]):
            found = _service(facts, row, port)
            return Destination(
                kind="service", name=found.name, port=found.port, addresses=(address,), service=row
            )
    for pod in facts.pods():
        if str(address) in pod.addresses and not pod.ended:
            found = _pod(facts, pod, port)
            return Destination(kind="pod", name=found.name, port=found.port, addresses=(address,))
    if port is None:
        raise CliError(Code.USAGE, f"which port of {address}?", remedy=f"write {address}:PORT")
    return Destination(kind="address", name=str(address), port=port, addresses=(address,))
