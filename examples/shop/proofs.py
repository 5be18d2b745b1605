# SPDX-License-Identifier: Apache-2.0
"""What the demo proves, one function each: it measures, and says what it expected and what it saw."""

from __future__ import annotations

import collections
import json
import re
import secrets
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shop import METRICS_URL, NODES, Shop, ShopError, eventually, full_name, main_pid, pod_ip
from wire import HBONE_PORT, Capture, CaptureError, Wire

ROUNDS = 20
"""Of shopping, at least; three requests each."""
LATENCY_ROUNDS = 6
LATENCY_REQUESTS = 120
SETTLE_S = 15.0
LISTENERS = ("15001", "15006", "15008")
MODE = "istio.io/dataplane-mode"
EDGES = (
    ("shopper", "web"),
    ("web", "product"),
    ("web", "cart"),
    ("web", "order"),
    ("cart", "redis"),
    ("order", "postgres"),
    ("order", "payment"),
)
"""Who must have talked to whom, by service account."""
BANK = "api.bank.example"
SAMPLE = re.compile(r"^(\w+)\{(.*)\} (\S+)", re.MULTILINE)
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """One line of the result."""

    name: str
    good: bool
    seen: str
    expected: str = ""
    then: str = ""
    """Command to look further with."""

    def text(self) -> str:
        """Return it for a person."""
        if self.good:
            return f"PROVEN  {self.name:<11} {self.seen}"
        return (
            f"FAILED  {self.name:<11} expected {self.expected}\n{'':20}seen     {self.seen}\n"
            f"{'':20}next     {self.then}"
        )


def enrolled(shop: Shop, directory: Path) -> list[Proof]:
    """Every pod of the labelled namespace has an enrolment and ztunnel's listeners inside; no other has."""
    del directory
    uids = {str(item["podUid"]) for item in shop.objects("enrollments")}
    inside, outside, wrong = shop.pods("shop"), shop.pods("outside"), []
    for pod in [*inside, *outside]:
        name = full_name(pod).replace("/", "-")
        ports = {
            line.split()[3].rpartition(":")[2] for line in shop.in_netns(name, "ss", "-Hltn").splitlines()
        }
        captured = pod["metadata"]["uid"] in uids and ports.issuperset(LISTENERS)
        if captured != (pod in inside):
            wrong.append(full_name(pod))
    captured_inside = len(inside) - sum(name.startswith("shop/") for name in wrong)
    captured_outside = sum(name.startswith("outside/") for name in wrong)
    return [
        Proof(
            name="enrolled",
            good=not wrong and bool(inside),
            seen=f"{captured_inside} of {len(inside)} pods of namespace shop are captured (ztunnel listens "
            f"in each on {', '.join(LISTENERS)}); of namespace outside {captured_outside} of {len(outside)}"
            + (f"; wrong: {', '.join(wrong)}" if wrong else ""),
            expected="all pods of shop captured and none of outside",
            then=shop.command("get", "pods -A -o wide"),
        )
    ]


def _shopping(shop: Shop, marker: str) -> Proof:
    done = shop.execute(
        "shop/shopper", "python3", "-B", "/run/shop/shopping.py", "http://web", marker, str(ROUNDS)
    )
    if done.returncode:
        raise ShopError(f"the shopper's program failed: {done.stderr.strip()[-500:]}")
    value: dict[str, Any] = json.loads(done.stdout)
    good, versions = value["good"], value["versions"]
    total = sum(good.values())
    return Proof(
        name="traffic",
        good=not value["failed"] and len(versions) == 2,
        seen=f"{total} of {value['rounds'] * 3} requests through nginx answered: "
        f"{good.get('product', 0)} catalogues "
        f"({', '.join(f'{v}: {n}' for v, n in sorted(versions.items()))}), "
        f"{good.get('cart', 0)} carts in Redis, "
        f"{good.get('order', 0)} orders in PostgreSQL paid at the bank outside"
        + (f"; first failure: {value['failed'][0]}" if value["failed"] else ""),
        expected="an answer to every request, from both versions of the catalogue",
        then=shop.command("exec", "shop/shopper -- curl -sv http://web/product"),
    )


def traffic_and_wire(shop: Shop, directory: Path) -> list[Proof]:
    """The shop works; meanwhile every byte between the nodes is TLS 1.3 on 15008, none of it readable."""
    marker = f"marker-{secrets.token_hex(12)}"
    capture = Capture(f"ambit-{shop.name}-fabric", directory / "shop.pcap")
    try:
        traffic = _shopping(shop, marker)
        wire = capture.stop()
    finally:
        capture.end()
    return [traffic, _on_the_wire(shop, wire, marker), _control(shop, directory)]


def _on_the_wire(shop: Shop, wire: Wire, marker: str) -> Proof:
    ports, faults = wire.by_port(), wire.tls_faults()
    problems = [
        f"{count} bytes on port {port}" for port, count in sorted(ports.items()) if port != HBONE_PORT
    ]
    problems += [f"{count} packets of {what}" for what, count in wire.other.items()]
    problems += faults[:3]
    if wire.holds(marker):
        problems.append("the marker of the requests in the clear")
    if not ports.get(HBONE_PORT):
        problems.append("nothing on port 15008")
    connections = sum(1 for (_, sport, _, _), data in wire.streams.items() if sport == HBONE_PORT and data)
    return Proof(
        name="wire",
        good=not problems,
        seen="; ".join(problems)
        or f"{ports[HBONE_PORT]} bytes between the nodes (tcpdump), all in {connections} TLS 1.3 connections "
        f"to port {HBONE_PORT}; the marker sent in every request occurs 0 times",
        expected="TLS 1.3 on port 15008 only, without the marker of the requests",
        then=f"ip netns exec ambit-{shop.name}-fabric tcpdump -ni any -A 'tcp and not port {HBONE_PORT}'",
    )


def _control(shop: Shop, directory: Path) -> Proof:
    """Show that the same capture would have seen plaintext: between two pods that are not in the mesh."""
    marker = f"marker-{secrets.token_hex(12)}"
    capture = Capture(f"ambit-{shop.name}-fabric", directory / "control.pcap")
    try:
        code, text = shop.curl("outside/outsider", "http://catalogue/", "-H", f"X-Marker: {marker}")
        wire = capture.stop()
    finally:
        capture.end()
    return Proof(
        name="control",
        good=code == 0 and wire.holds(marker),
        seen="the same capture reads the marker of a request between two pods outside the mesh"
        if code == 0 and wire.holds(marker)
        else f"curl {code} {text[:200]}, marker {'' if wire.holds(marker) else 'not '}captured",
        expected="the capture to see plaintext where there is no mesh",
        then=shop.command("exec", "outside/outsider -- curl -sv http://catalogue/"),
    )


def _series(text: str, name: str) -> list[tuple[dict[str, str], float]]:
    return [
        (dict(LABEL.findall(labels)), float(value))
        for found, labels, value in SAMPLE.findall(text)
        if found == name
    ]


def identities(shop: Shop, directory: Path) -> list[Proof]:
    """Who talked to whom, as the ztunnels' metrics have it, each side by its certificate."""
    del directory

    found: dict[tuple[str, str], float] = collections.defaultdict(float)

    def look() -> bool:
        found.clear()
        for node in NODES:
            for labels, value in _series(shop.metrics(node), "istio_tcp_connections_opened_total"):
                policy = labels.get("connection_security_policy")
                if labels.get("reporter") == "destination" and policy == "mutual_tls":
                    found[labels["source_principal"], labels["destination_principal"]] += value
                if labels.get("reporter") == "source" and labels.get("destination_service") == BANK:
                    found[labels["source_canonical_service"], BANK] += value
        return all(_edge(*edge) in found for edge in EDGES) and ("payment", BANK) in found

    eventually(look, SETTLE_S)
    shown = [(*_edge(*edge), "mutual_tls") for edge in EDGES]
    shown.append(("payment", BANK, "in the clear: a ServiceEntry, outside the mesh"))
    return [
        Proof(
            name="identity",
            good=found.get((source, destination), 0.0) > 0,
            seen=f"{source} -> {destination}: {found.get((source, destination), 0.0):.0f} connections, {how}",
            expected=f"connections {source} -> {destination} in the metrics of a node",
            then=f"ip netns exec ambit-{shop.name}-node1 curl -s {METRICS_URL}; the same with node2",
        )
        for source, destination, how in shown
    ]


def _edge(source: str, destination: str) -> tuple[str, str]:
    return f"spiffe://cluster.local/ns/shop/sa/{source}", f"spiffe://cluster.local/ns/shop/sa/{destination}"


def _field(line: str, name: str) -> str:
    found = re.search(rf'(?:^|\s){re.escape(name)}=(?:"((?:[^"\\]|\\.)*)"|(\S+))', line)
    return (found[1] if found[1] is not None else found[2]) if found else ""


def _logged(shop: Shop, *words: str) -> tuple[str, str]:
    found = eventually(lambda: list(shop.access_lines(*words)), SETTLE_S)
    return found[0] if found else ("", "")


def _refusal(shop: Shop, name: str, what: str, answer: tuple[int, str], words: tuple[str, ...]) -> Proof:
    """Prove that a request had no answer, and that the access log of the called pod says why."""
    code, text = answer
    node, line = _logged(shop, 'direction="inbound"', "reason=policy_denied", *words)
    why = f"ztunnel on {node}: {_field(line, 'error')}" if line else "no such line in an access log"
    return Proof(
        name=name,
        good=code != 0 and bool(line),
        seen=f"{what}: curl ends with {code} ({text[:120] or 'no text'}); {why}",
        expected=f"no answer, and an inbound line with reason=policy_denied and {' '.join(words)}",
        then=f"{shop.command('logs', 'ztunnel@node1 --tail 20')}; the same with node2",
    )


def denied(shop: Shop, directory: Path) -> list[Proof]:
    """A caller in the mesh that no policy allows is refused, and the log says why."""
    del directory
    answer = shop.curl("shop/snoop", "http://payment/pay", "-d", "{}")
    return [_refusal(shop, "denied", "snoop -> payment", answer, ('src.workload="snoop"',))]


def strict(shop: Shop, directory: Path) -> list[Proof]:
    """A client outside the mesh gets nothing from STRICT pods, though it reaches others."""
    del directory
    source = pod_ip(shop.pod("outside", "outsider"))
    address = pod_ip(shop.pod("shop", "web"))
    answer = shop.curl("outside/outsider", f"http://{address}:8080/health")
    return [_refusal(shop, "strict", "outsider -> web", answer, (f"src.addr={source}:",))]


def label_flip(shop: Shop, directory: Path) -> list[Proof]:
    """One label moves a running pod out of the mesh and back; its process does not notice."""
    del directory
    pod = shop.pod("shop", "product", "v2")
    name, url = full_name(pod), f"http://{pod_ip(pod)}:8080/"
    steps: list[str] = []
    wrong: list[str] = []
    first = main_pid(shop, pod)
    for change, condition, reachable in (
        (f"{MODE}=none", "unenrolled", True),
        (f"{MODE}-", "enrolled", False),
    ):
        shop.lab("label", "pod", name, change)
        shop.lab("wait", name, "--for", condition, "--timeout", "20")

        def asked(wanted: bool = reachable) -> tuple[int, str] | None:
            answer = shop.curl("outside/outsider", url)
            return answer if (answer[0] == 0) == wanted else None

        code = eventually(asked, SETTLE_S)
        inside = eventually(lambda: shop.curl("shop/shopper", url)[0] == 0, SETTLE_S)
        if code is None:
            wrong.append(f"{condition}: the outsider {'gets no' if reachable else 'gets an'} answer")
        if not inside:
            wrong.append(f"{condition}: the shopper gets no answer")
        if main_pid(shop, pod) != first:
            wrong.append(f"{condition}: another process, {main_pid(shop, pod)[0]}")
        steps.append(f"{condition} (outsider {'answered' if reachable else 'refused'}, shopper answered)")
    return [
        Proof(
            name="label flip",
            good=not wrong,
            seen="; ".join(wrong) or f"{name}: {', then '.join(steps)}, always pid {first[0]}, no restart",
            expected="out and back by label, the same process throughout",
            then=shop.command("logs", f"agent@{pod['spec']['nodeName']} --tail 20"),
        )
    ]


def latency(shop: Shop, directory: Path) -> list[Proof]:
    """The same program on the same two nodes, in the mesh and not, measured in turns."""
    del directory
    inside = pod_ip(shop.pod("shop", "product", "v1"))
    outside = pod_ip(shop.pod("outside", "product", "v1"))
    found: dict[tuple[str, str], list[float]] = collections.defaultdict(list)
    for _ in range(LATENCY_ROUNDS):
        for path, client, address in (
            ("direct", "outside/outsider", outside),
            ("mesh", "shop/shopper", inside),
        ):
            done = shop.execute(
                client, "python3", "-B", "/run/shop/measure.py", address, "8080", str(LATENCY_REQUESTS)
            )
            if done.returncode:
                raise ShopError(f"measuring {path} failed: {done.stderr.strip()[-300:]}")
            for kind, values in json.loads(done.stdout).items():
                found[path, kind] += values
    middle = {key: statistics.median(values) for key, values in found.items()}
    texts = [
        f"{what}: {middle['direct', kind]:.0f} us direct, {middle['mesh', kind]:.0f} us in the mesh "
        f"(+{middle['mesh', kind] - middle['direct', kind]:.0f})"
        for kind, what in (
            ("requests", "a request over an open connection"),
            ("connects", "one with a new connection"),
        )
    ]
    return [
        Proof(
            name="latency",
            good=True,
            seen=f"medians of {len(found['mesh', 'requests'])} and {len(found['mesh', 'connects'])}, "
            f"node to node: {'; '.join(texts)}",
        )
    ]


ALL: tuple[tuple[str, Callable[[Shop, Path], list[Proof]]], ...] = (
    ("enrolled", enrolled),
    ("traffic", traffic_and_wire),
    ("identity", identities),
    ("denied", denied),
    ("strict", strict),
    ("label flip", label_flip),
    ("latency", latency),
)
__all__ = ["ALL", "CaptureError", "Proof"]
