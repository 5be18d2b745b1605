# SPDX-License-Identifier: Apache-2.0
"""`ambit authz POD|SVC`: the policies in force for it, where they were written, and who may call it."""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlencode

from cli.codes import EXIT_NO_DATA, EXIT_OK, CliError, Code
from cli.facts import Facts, Pod
from cli.options import add_common
from cli.output import Cell, Row, Screen, document, dump, say, table
from cli.policy_source import Origin, origin
from cli.policy_text import rule_text
from cli.target import Part, open_target
from cli.why_target import find_service

CALLERS = 60
"""Identities that are tried; more are told."""


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("object", metavar="POD|SVC", help="NAME, NAMESPACE/NAME, pod/NAME or svc/NAME")
    parser.add_argument("-n", "--namespace", metavar="NS", help="its namespace")
    parser.add_argument(
        "--port", type=int, metavar="PORT", help="the application's port (default: all it serves)"
    )
    add_common(parser)


def run(options: argparse.Namespace) -> int:
    """Print the policies and who may call."""
    facts = Facts(open_target(options))
    pods = _pods(facts, options.object, options.namespace)
    documents, screen = [], Screen.of(sys.stdout, options.color)
    for number, pod in enumerate(pods):
        if not pod.enrolled:
            say(f"{pod.key} is not in the mesh: nothing is judged there ({pod.reason})")
            continue
        found = Policies(facts, pod, options.port)
        documents.append(found.document())
        if options.output not in ("json", "yaml"):
            found.show(screen, wide=options.output == "wide", first=not number)
    if options.output in ("json", "yaml"):
        print(dump(document("AuthorizationReport", items=documents), options.output))
    return EXIT_OK if documents else EXIT_NO_DATA


def _pods(facts: Facts, text: str, namespace: str | None) -> list[Pod]:
    kind, slash, rest = text.partition("/")
    service = None
    if not (slash and kind in ("pod", "po", "deploy", "deployment")):
        name = rest if slash and kind in ("svc", "service") else text
        service = find_service(facts, name, namespace or "default")
        if service is None and namespace is None and "/" not in name:
            same = [row for row in facts.registry()["services"] if row["name"] == name]
            service = same[0] if len(same) == 1 else None
    if service is None:
        name = rest if slash and kind in ("pod", "po", "deploy", "deployment") else text
        return [facts.pod(name, namespace)]
    key = f"{service['namespace']}/{service['hostname']}"
    members = {(w["namespace"], w["name"]) for w in facts.registry()["workloads"] if key in w["services"]}
    found = [p for p in facts.pods() if (p.namespace, p.name) in members]
    if not found:
        raise CliError(Code.NOT_FOUND, f"service {service['namespace']}/{service['name']} has no endpoints")
    return found


class Policies:
    """The policies of one pod, as its node has them."""

    def __init__(self, facts: Facts, pod: Pod, port: int | None) -> None:
        self._facts = facts
        self._pod = pod
        self._dump = facts.dump(pod.node)
        self._workload = self._find()
        self.ports = [port] if port else self._served()
        answer = self._judge("", self.ports[0])
        by_key = {f"{p['namespace']}/{p['name']}": p for p in self._dump["policies"]}
        self._policies = [(key, by_key.get(key)) for key in answer["policies"]]
        self._callers = self._judge_callers()

    def _find(self) -> dict[str, Any]:
        for row in self._dump["workloads"]:
            if (row["namespace"], row["name"]) == (self._pod.namespace, self._pod.name):
                return dict(row)
        raise CliError(Code.NOT_FOUND, f"the ztunnel of {self._pod.node} does not know {self._pod.key}")

    def _served(self) -> list[int]:
        """Ports that its services lead to, else those that it listens on."""
        ports: set[int] = set()
        services = {f"{s['namespace']}/{s['hostname']}": s for s in self._dump["services"]}
        for key, own in self._workload["services"].items():
            for port in services.get(key, {}).get("ports", ()):
                target = own["ports"].get(str(port["servicePort"])) or port["targetPort"]
                ports |= {int(target)} if target else set()
        if not ports:
            listeners = self._facts.target.listening(self._pod.namespace, self._pod.name) or ()
            ports = {port for _, port in listeners}
        return sorted(ports) or [80]

    def _judge(self, identity: str, port: int) -> dict[str, Any]:
        address = self._workload["addresses"][0]
        version = ip_address(address).version
        # An address that stands for no pod: rules on addresses are told, not tried.
        nobody = "192.0.2.1" if version == 4 else "2001:db8::1"
        question = {
            "destination": self._workload["uid"],
            "address": address,
            "port": port,
            "source_ip": nobody,
            **({"identity": identity} if identity else {}),
        }
        found: dict[str, Any] = self._facts.ask(
            Part("ztunnel", self._pod.node), f"/explain/inbound?{urlencode(question)}"
        )
        return found

    def _judge_callers(self) -> list[tuple[str, dict[int, bool]]]:
        identities = sorted(
            {
                f"spiffe://{w['trust_domain']}/ns/{w['namespace']}/sa/{w['service_account']}"
                for w in self._facts.registry()["workloads"]
                if w["tunnel_protocol"] == "hbone"
            }
        )
        if len(identities) > CALLERS:
            say(f"{len(identities) - CALLERS} more identities are not tried; `ambit why` answers for each")
        with ThreadPoolExecutor(max_workers=8) as pool:
            return list(pool.map(self._judge_caller, [*identities[:CALLERS], ""]))

    def _judge_caller(self, identity: str) -> tuple[str, dict[int, bool]]:
        return identity, {port: bool(self._judge(identity, port)["allowed"]) for port in self.ports}

    def _origin(self, key: str) -> Origin:
        return origin(self._facts, key, namespace=self._pod.namespace, labels=self._pod.raw.labels)

    def show(self, screen: Screen, *, wide: bool, first: bool) -> None:
        """Print both tables."""
        print(("" if first else "\n") + screen.paint(f"pod {self._pod.key}", "bold"))
        if not self._policies:
            print("  no policy applies: everybody may connect, in plaintext too")
        rows: list[Row] = []
        for key, policy in self._policies:
            source = self._origin(key)
            if policy is None:
                rows.append([str(source), Cell("?", "red"), "not known on the node", source.place])
                continue
            says = "; ".join(rule_text(rule) for rule in policy["rules"]) or "nothing"
            action = policy["action"].upper() + (" dry run" if policy["dryRun"] else "")
            if not wide and len(says) > 70:
                says = says[:67] + "..."
            rows.append(
                [
                    str(source),
                    Cell(action, "red" if policy["action"] == "deny" else "green"),
                    says,
                    source.place,
                ]
            )
        if rows:
            print("\n" + table(("POLICY", "ACTION", "SAYS", "WRITTEN-AT"), rows, screen))
        titles = ["CALLER", *(f"PORT-{port}" for port in self.ports)]
        callers: list[Row] = [
            [identity or "anybody in plaintext", *(_word(answers[port]) for port in self.ports)]
            for identity, answers in self._callers
        ]
        print("\n" + table(titles, callers, screen))

    def document(self) -> dict[str, Any]:
        """Write it for JSON."""
        return {
            "pod": self._pod.key,
            "policies": [
                {
                    **self._origin(key).data(),
                    "action": policy["action"] if policy else None,
                    "dryRun": policy["dryRun"] if policy else None,
                    "rules": [rule_text(rule) for rule in policy["rules"]] if policy else None,
                }
                for key, policy in self._policies
            ],
            "callers": [
                {"identity": identity, "allowed": {str(port): word for port, word in answers.items()}}
                for identity, answers in self._callers
            ],
        }


def _word(allowed: bool) -> Cell:
    return Cell("allowed", "green") if allowed else Cell("denied", "red")
