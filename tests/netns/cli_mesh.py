# SPDX-License-Identifier: Apache-2.0
"""A lab of callers and servers for `ambit why`: generated policies, and what really happens to connects."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]

SERVER = """
import asyncio
async def serve(reader, writer):
    try:
        if await asyncio.wait_for(reader.read(2), 5) == b"hi":
            writer.write(b"yes")
            await writer.drain()
    except (OSError, asyncio.TimeoutError):
        pass
    writer.close()
async def main():
    await asyncio.start_server(serve, None, 8080)
    await asyncio.start_server(serve, "127.0.0.1", 8081)
    await asyncio.start_server(serve, "0.0.0.0", 8082)
    await asyncio.start_server(serve, "::", 8083)
    await asyncio.Event().wait()
asyncio.run(main())
"""
"""All addresses; loopback only; all of IPv4; all of IPv6 (asyncio sets IPV6_V6ONLY)."""

PROBE = """
import asyncio, json, sys
async def once(host, port):
    try:
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"hi")
        answer = await reader.read(3)
        writer.close()
        return answer == b"yes"
    except OSError:
        return False
async def one(gate, host, port, tries):
    async with gate:
        found = []
        for _ in range(tries):
            try:
                found.append(await asyncio.wait_for(once(host, port), 2))
            except asyncio.TimeoutError:
                found.append(False)
        return found
async def main():
    gate = asyncio.Semaphore(24)
    asked = json.loads(sys.argv[1])
    print(json.dumps(await asyncio.gather(*(one(gate, *entry) for entry in asked))))
asyncio.run(main())
"""
"""Connect to each [host, port, tries]; print for each whether the server answered, try by try."""

PODS = (
    # name, namespace, node, in the mesh
    ("a1", "alpha", "node1", True),
    ("a2", "alpha", "node2", True),
    ("off", "alpha", "node1", False),
    ("b1", "beta", "node2", False),
    ("b2", "beta", "node1", True),
)
PORTS = (8080, 8081, 8082, 8083, 9999, 15008)
SERVICES = (
    # name, namespace, selector
    ("one", "alpha", {"app": "a1"}),
    ("mixed", "alpha", {"tier": "mixed"}),
    ("empty", "alpha", {"app": "nobody"}),
    ("far", "beta", {"app": "b2"}),
)
Pair = tuple[str, str, int]
"""Caller (`namespace/name`), address, port."""


def manifests() -> str:
    """Write namespaces, pods and services."""
    documents: list[dict[str, Any]] = [
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": name, "labels": {"istio.io/dataplane-mode": "ambient"} if mesh else {}},
        }
        for name, mesh in (("alpha", True), ("beta", False), ("istio-system", False))
    ]
    for name, namespace, node, meshed in PODS:
        labels = {"app": name, "tier": "mixed" if name in ("a2", "off") else "own"}
        labels["istio.io/dataplane-mode"] = "ambient" if meshed else "none"
        documents.append(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "namespace": namespace, "labels": labels},
                "spec": {
                    "nodeName": node,
                    "serviceAccountName": name,
                    "terminationGracePeriodSeconds": 1,
                    "containers": [{"name": "c", "command": ["/usr/bin/python3", "-I", "-u", "-c", SERVER]}],
                },
            }
        )
    for name, namespace, selector in SERVICES:
        documents.append(
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": name, "namespace": namespace},
                "spec": {
                    "ipFamilyPolicy": "PreferDualStack",
                    "selector": selector,
                    "ports": [
                        {"name": "open", "port": 80, "targetPort": 8080},
                        {"name": "shut", "port": 81, "targetPort": 8081},
                    ],
                },
            }
        )
    return yaml.safe_dump_all(documents)


class Policies:
    """Draws policies; equal seeds give equal policies."""

    def __init__(self, seed: int, addresses: Sequence[str]) -> None:
        self._random = random.Random(seed)
        self._addresses = addresses

    def _some(self, options: Sequence[Any]) -> list[Any]:
        return self._random.sample(list(options), self._random.randint(1, min(2, len(options))))

    def _maybe(self, share: float) -> bool:
        return self._random.random() < share

    def _source(self) -> dict[str, Any]:
        principals = [f"cluster.local/ns/{ns}/sa/{name}" for name, ns, _, _ in PODS]
        choices: dict[str, Sequence[Any]] = {
            "principals": [*principals, "*", "cluster.local/ns/alpha/*", "*/sa/b2"],
            "notPrincipals": principals,
            "namespaces": ["alpha", "beta"],
            "notNamespaces": ["alpha", "beta"],
            "ipBlocks": [*self._addresses, "10.244.0.0/24", "fd00:10:244::/64"],
            "notIpBlocks": self._addresses,
        }
        return {name: self._some(choices[name]) for name in self._some(sorted(choices))}

    def _rule(self) -> dict[str, Any]:
        rule: dict[str, Any] = {}
        if self._maybe(0.8):
            rule["from"] = [{"source": self._source()} for _ in range(self._random.randint(1, 2))]
        if self._maybe(0.4):
            name = self._random.choice(["ports", "notPorts"])
            rule["to"] = [{"operation": {name: [str(p) for p in self._some((8080, 8082, 81, 9999))]}}]
        return rule

    def _selector(self) -> dict[str, Any]:
        app = self._random.choice([name for name, _, _, _ in PODS])
        return {"selector": {"matchLabels": {"app": app}}} if self._maybe(0.6) else {}

    def _namespace(self, root: float) -> str:
        return "istio-system" if self._maybe(root) else self._random.choice(["alpha", "alpha", "beta"])

    def documents(self) -> list[dict[str, Any]]:
        """Draw one round of policies."""
        found: list[dict[str, Any]] = []
        for number in range(self._random.randint(2, 5)):
            namespace = self._namespace(0.1)
            spec: dict[str, Any] = {
                "action": self._random.choice(["ALLOW", "DENY", "DENY"]),
                "rules": [self._rule() for _ in range(self._random.randint(1, 2))],
                **({} if namespace == "istio-system" else self._selector()),
            }
            found.append(_document("AuthorizationPolicy", namespace, f"p{number}", spec))
        if self._maybe(0.6):
            namespace = self._namespace(0.3)
            selector = {} if namespace == "istio-system" else self._selector()
            spec = {"mtls": {"mode": self._random.choice(["STRICT", "PERMISSIVE"])}, **selector}
            if selector and self._maybe(0.5):
                spec["portLevelMtls"] = {8080: {"mode": self._random.choice(["STRICT", "PERMISSIVE"])}}
            found.append(_document("PeerAuthentication", namespace, "peers", spec))
        return found


def _document(kind: str, namespace: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


def probe(lab: str, caller: str, asked: Iterable[tuple[str, int, int]]) -> list[list[bool]]:
    """Connect from a pod to each (address, port, tries) and say which tries were answered."""
    words = [sys.executable, "-m", "cli", "lab", "exec", "--name", lab, caller]
    done = subprocess.run(
        [*words, "--", "/usr/bin/python3", "-I", "-c", PROBE, json.dumps(list(asked))],
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
        cwd=REPOSITORY,
    )
    assert done.returncode == 0, done.stderr
    found: list[list[bool]] = json.loads(done.stdout)
    return found
