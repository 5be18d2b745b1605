# SPDX-License-Identifier: Apache-2.0
"""`ambit why` against what really happens: generated policies, every caller, every kind of destination."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from cli_mesh import PODS, PORTS, REPOSITORY, SERVICES, Policies, manifests, probe
from lab_bed import Lab

from cli.checks import differences
from cli.facts import Facts
from cli.target import open_target
from cli.why_path import Walker
from cli.why_report import Report
from cli.why_target import find_destination
from tests.support.eventually import eventually

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, network namespaces and BPF"),
    pytest.mark.timeout(600),
]

LAB = Lab("cliwhy")
ROUNDS = 4
TRIES = 6
"""Connects to a service of several endpoints: an outcome that is sure for all must show in each."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("why")
    (directory / "mesh.yaml").write_text(manifests())
    try:
        LAB.ambit("up", "-f", str(directory / "mesh.yaml"), "--nodes", "2")
        yield directory
    finally:
        LAB.run("down")


def facts() -> Facts:
    return Facts(open_target(argparse.Namespace(lab=LAB.name, state=None)))


def settled(wanted: int) -> bool:
    """Whether controller and nodes hold this round's objects and agree."""
    now = facts()
    problems = now.problems()
    assert not problems["rejected"], problems
    written = now.of("AuthorizationPolicy", "PeerAuthentication")
    served = {(p["namespace"], p["name"]) for p in now.registry()["policies"]}
    own = {(p.namespace, p.name) for p in written if p.kind == "AuthorizationPolicy"}
    return (
        len(written) == wanted
        and own <= served
        and all(not differences(now.registry(), now.dump(node)) for node in now.target.nodes())
        and all(
            {(p["namespace"], p["name"]) for p in now.dump(node)["policies"]} == served
            for node in now.target.nodes()
        )
    )


def destinations(now: Facts) -> list[tuple[str, int, int]]:
    """Every address and port that is asked for, and how often."""
    found: list[tuple[str, int, int]] = []
    for name, namespace, _, _ in PODS:
        pod = now.pod(f"{namespace}/{name}", None)
        found += [(address, port, 1) for address in pod.addresses for port in PORTS]
    for row in now.registry()["services"]:
        if (row["name"], row["namespace"]) in {(name, namespace) for name, namespace, _ in SERVICES}:
            several = TRIES if row["name"] == "mixed" else 1
            ports = ((80, several), (81, 1), (82, 1))
            found += [(a["address"], port, tries) for a in row["addresses"] for port, tries in ports]
    return found


def explained(now: Facts, caller: str, address: str, port: int) -> tuple[float, str]:
    """The share of connections that `why` says work, and the code of its first cause."""
    host = f"[{address}]" if ":" in address else address
    source = now.pod(caller, None)
    target = find_destination(now, f"{host}:{port}", source.namespace)
    report = Report.of(Walker(now, source).walk(target), now.target)
    cause = report.first_cause
    return max(report.shares, default=0.0), str(cause.code) if cause else ""


def judge_round(directory: Path, seed: int) -> Counter[str]:
    """Put one round of policies into force, compare every pair, take them away; return the codes told."""
    start = facts()
    addresses = [a for name, ns, _, _ in PODS for a in start.pod(f"{ns}/{name}", None).addresses]
    documents = Policies(seed, addresses).documents()
    path = directory / f"{LAB.name}{seed}.yaml"
    path.write_text(yaml.safe_dump_all(documents))
    LAB.ambit("apply", "-f", str(path))
    try:
        eventually(lambda: settled(len(documents)), "the policies are in force")
        now = facts()
        asked = destinations(now)
        wrong, codes = [], Counter[str]()
        for name, namespace, _, _ in PODS:
            caller = f"{namespace}/{name}"
            answers = probe(LAB.name, caller, asked)
            for (address, port, _), answer in zip(asked, answers, strict=True):
                share, code = explained(now, caller, address, port)
                codes[code or "works"] += 1
                if (share > 1 - 1e-9 and not all(answer)) or (share == 0 and any(answer)):
                    wrong.append(f"{caller} -> {address}:{port}: told {share:.2f} {code}, saw {answer}")
        assert not wrong, f"{yaml.safe_dump_all(documents)}\n" + "\n".join(wrong)
        return codes
    finally:
        LAB.ambit("delete", "-f", str(path))


def test_the_answer_is_what_happens(lab: Path) -> None:
    codes: Counter[str] = Counter()
    for seed in range(ROUNDS):
        codes += judge_round(lab.parent, seed)
    every = {"works", "AMB3202", "AMB3203", "AMB3204", "AMB3205", "AMB3206", "AMB3208", "AMB3210"}
    assert every <= set(codes), dict(codes)
    assert sum(codes.values()) >= 1000


def test_the_command_says_it_and_ends_with_its_code(lab: Path) -> None:
    eventually(lambda: settled(0), "no policy is in force")

    def why(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "cli", "why", "--lab", LAB.name, *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
            cwd=REPOSITORY,
        )

    good = why("alpha/a1", "far.beta:80")
    assert (good.returncode, good.stderr) == (0, "")
    assert "HBONE tunnel with mutual TLS, within node1" in good.stdout
    assert good.stdout.rstrip().endswith("it works")
    bad = why("alpha/a1", "far.beta:81", "-o", "json")
    assert bad.returncode == 2
    report = json.loads(bad.stdout)
    assert (report["kind"], report["works"], report["cause"]["code"]) == ("WhyReport", False, "AMB3208")
    assert "127.0.0.1" in report["cause"]["text"]
    unknown = why("alpha/a1", "nobody:80")
    assert unknown.returncode == 1
    assert unknown.stdout == ""
    assert unknown.stderr.startswith("AMB3005: nobody is no service")
    assert why("alpha/a1", "one").returncode == 64
