# SPDX-License-Identifier: Apache-2.0
"""Every reading verb on a live lab: each output, exit codes, what a newcomer and a script get."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from lab_bed import MANIFEST, ONLY_FRIEND, REPOSITORY, Lab

from tests.support.eventually import eventually

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, network namespaces and BPF"),
    pytest.mark.timeout(300),
]

LAB = Lab("cliverbs")


def ambit(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli", *words, "--lab", LAB.name],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=REPOSITORY,
        env={**os.environ, **environment},
    )


def data(*words: str) -> Any:
    done = ambit(*words, "-o", "json")
    assert done.returncode == 0, done.stderr + done.stdout
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A lab in which a friend is let in and a snoop is not, with traffic of both."""
    directory = tmp_path_factory.mktemp("verbs")
    (directory / "shop.yaml").write_text(MANIFEST + "---" + ONLY_FRIEND)
    try:
        LAB.ambit("up", "-f", str(directory / "shop.yaml"), "--nodes", "2")
        eventually(lambda: LAB.call("snoop") == "refused", "the policy is in force")
        assert LAB.call("friend") == "got"
        yield directory
    finally:
        LAB.run("down")


READING = [
    ("check",),
    ("status",),
    ("stat", "deploy", "--since-start"),
    ("stat", "ns", "--since-start"),
    ("stat", "svc", "server", "--since-start"),
    ("stat", "pod", "-n", "shop", "--all", "--since-start"),
    ("edges",),
    ("certs",),
    ("authz", "server", "-n", "shop"),
    ("describe", "pod", "shop/server"),
    ("describe", "svc", "shop/server"),
    ("node", "config", "workload", "node1"),
    ("node", "config", "service"),
    ("node", "config", "policy"),
    ("node", "config", "cert"),
    ("node", "config", "bpf", "node1"),
    ("why", "shop/friend", "server"),
]


@pytest.mark.parametrize("words", READING, ids=" ".join)
def test_every_verb_in_every_format(lab: Path, words: tuple[str, ...]) -> None:
    table = ambit(*words, LC_ALL="C", PYTHONIOENCODING="ascii")
    assert (table.returncode, table.stderr) == (0, "")
    assert table.stdout.isascii()
    assert "\x1b" not in table.stdout
    assert all(line == line.rstrip() for line in table.stdout.splitlines())
    document = data(*words)
    assert document["apiVersion"] == "ambit.io/v1alpha1"
    # Ages grow between two questions; what there is stays.
    again = ambit(*words, "-o", "yaml")
    assert yaml.safe_load(again.stdout).keys() == document.keys()


def test_check_finds_nothing_wrong_in_a_new_lab(lab: Path) -> None:
    report = data("check")
    bad = [c for group in report["categories"] for c in group["checks"] if c["result"] != "ok"]
    assert (report["success"], bad) == (True, [])


def test_stat_and_edges_count_what_was_done(lab: Path) -> None:
    def counted() -> bool:
        (row,) = data("stat", "svc", "server", "-n", "shop", "--since-start")["items"]
        return bool(row["tcpOpened"] >= 1 and row["tcpDenied"] >= 1)

    eventually(counted, "both connections are counted")
    edges = {e["source"]["workload"]: e for e in data("edges")["items"]}
    assert edges["friend"]["mutualTls"] is True
    assert edges["friend"]["source"]["identity"] == "spiffe://cluster.local/ns/shop/sa/friend"
    assert edges["snoop"]["failures"].keys() == {"DENY"}


def test_authz_says_who_may_call(lab: Path) -> None:
    (item,) = data("authz", "shop/server")["items"]
    allowed = {c["identity"].rpartition("/")[2] for c in item["callers"] if c["allowed"]["8080"]}
    assert allowed == {"friend"}
    (policy,) = item["policies"]
    assert (policy["kind"], policy["name"]) == ("AuthorizationPolicy", "only-friend")


def test_why_agrees_with_the_calls(lab: Path) -> None:
    assert data("why", "shop/friend", "server")["works"] is True
    done = ambit("why", "shop/snoop", "server", "-o", "json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["works"], report["cause"]["code"]) == (2, False, "AMB3204")
    assert report["cause"]["yaml"] == "- from: [{source: {principals: [cluster.local/ns/shop/sa/snoop]}}]"
    assert any(flow["verdict"] == "denied" for flow in report["flows"])


def test_flows_are_those_of_the_log(lab: Path) -> None:
    done = ambit("flows", "--from", "snoop", "--verdict", "denied", "-o", "json")
    assert done.returncode == 0
    flow = json.loads(done.stdout.splitlines()[-1])
    assert (flow["direction"], flow["reason"], flow["dst.workload"]) == ("inbound", "policy_denied", "server")
    assert ambit("flows", "--from", "friend", "--verdict", "denied").returncode == 4
    path = lab / "flows.json"
    path.write_text(ambit("flows", "--last", "100", "-o", "json").stdout)
    replayed = ambit("flows", "--input-file", str(path), "--from", "snoop", "-o", "table")
    assert (replayed.returncode, "shop/snoop" in replayed.stdout) == (0, True)


def test_tap_shows_what_ends_while_it_runs(lab: Path) -> None:
    words = [sys.executable, "-u", "-m", "cli", "tap", "friend", "--lab", LAB.name, "-o", "json"]
    lines: list[str] = []
    tap = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY)
    assert tap.stdout is not None
    assert tap.stderr is not None
    reader = threading.Thread(target=lines.extend, args=(iter(tap.stdout.readline, ""),))
    reader.start()
    try:
        eventually(lambda: LAB.call("friend") == "got" and lines, "a flow is shown")
    finally:
        tap.send_signal(signal.SIGINT)
        tap.wait(20)
        reader.join(20)
        errors = tap.stderr.read()
        tap.stdout.close()
        tap.stderr.close()
    assert json.loads(lines[0])["src.workload"] == "friend"
    assert (tap.returncode, errors) == (130, "interrupted\n")


def test_enrolling_and_leaving_are_reported_pod_by_pod(lab: Path) -> None:
    def result(*words: str) -> dict[str, str]:
        return {item["pod"]: item["result"] for item in data(*words)["items"]}

    pod = ("pod/outsider", "-n", "shop")
    assert result("enroll", *pod, "--dry-run") == {"shop/outsider": "would be enrolled"}
    assert result("enroll", *pod) == {"shop/outsider": "enrolled"}
    (shop,) = [n for n in data("status")["namespaces"] if n["name"] == "shop"]
    assert shop["enrolled"] == shop["pods"] == 4
    assert result("enroll", *pod) == {"shop/outsider": "was in the mesh"}
    assert result("unenroll", *pod) == {"shop/outsider": "out of the mesh"}
    report = result("enroll", "ns/shop", "--dry-run")
    assert set(report.values()) == {"is in the mesh", "stays out"}
    unknown = ambit("enroll", "ns/nowhere")
    assert (unknown.returncode, "namespaces are" in unknown.stderr) == (1, True)


def test_a_bugreport_holds_the_state_and_no_key(lab: Path) -> None:
    path = lab / "report.tar.gz"
    done = ambit("bugreport", "--file", str(path))
    assert (done.returncode, done.stdout) == (0, f"{path}\n")
    texts = {}
    with tarfile.open(path) as archive:
        for member in archive:
            file = archive.extractfile(member)
            assert file is not None
            texts[member.name.partition("/")[2]] = file.read().decode()
    assert texts["missing.txt"] == "nothing\n"
    assert json.loads(texts["check.json"])["kind"] == "CheckReport"
    assert json.loads(texts["node1/ztunnel/config_dump.txt"])["workloads"]
    assert not any("PRIVATE KEY" in text for text in texts.values())


def test_errors_say_what_whose_why_and_what_next(lab: Path) -> None:
    for words, code, said in (
        (("describe", "pod", "shop/sever"), 1, "did you mean server?"),
        (("node", "config", "workload", "node9"), 1, "nodes are node1, node2"),
        (("stat", "nothing", "here"), 64, "kinds are"),
        (("why", "shop/friend", "192.0.2.1"), 64, "192.0.2.1:PORT"),
    ):
        done = ambit(*words)
        assert (done.returncode, done.stdout) == (code, "")
        assert said in done.stderr
        assert done.stderr.startswith("AMB3")
        assert "Traceback" not in done.stderr


def test_a_lab_that_is_not_there() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cli", "check", "--lab", "nosuchlab"],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        cwd=REPOSITORY,
    )
    assert (done.returncode, done.stdout) == (69, "")
    assert done.stderr.startswith("AMB3001: no lab nosuchlab is up")


def test_a_reader_that_goes_away_is_no_error(lab: Path) -> None:
    command = (
        f"{sys.executable} -m cli node config bpf node1 --lab {LAB.name} | head -1; exit ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=False, timeout=30, cwd=REPOSITORY
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_check_names_a_dead_ztunnel_and_what_depends_on_it(lab: Path) -> None:
    pid = next(
        p["pid"] for p in json.loads((LAB.state / "daemons.json").read_text()) if p["name"] == "ztunnel@node2"
    )
    os.kill(pid, 19)  # SIGSTOP: it is there and does not answer.
    try:
        done = ambit("check", "-o", "json")
        results = {c["check"]: c for g in json.loads(done.stdout)["categories"] for c in g["checks"]}
        assert done.returncode == 2
        assert results["node2/ztunnel"]["code"] == "AMB3127"
        assert results["node2/sync"]["result"] == "skipped"
        assert results["node1/ztunnel"]["result"] == "ok"
        blocked = ambit("why", "shop/friend", "server", "-o", "json")
        assert json.loads(blocked.stdout)["cause"]["code"] == "AMB3201"
    finally:
        os.kill(pid, 18)
    done = ambit("check", "--wait", "30s")
    assert done.returncode == 0, done.stdout
