# SPDX-License-Identifier: Apache-2.0
"""A cluster as a target: what kubectl is asked, port-forwards, failures by name."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli import __main__ as main
from cli.codes import CliError, Code
from cli.install import version_of
from cli.target import CONTROLLER, Part, Target, UnreachableError, ask, open_target
from cli.target_kube import KubeTarget, usable
from tests.support.fake_target import FAKE_KUBECTL

SYSTEM = "istio-system"


def pod(name: str, app: str, node: str, **more: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": SYSTEM, "labels": {"app": app}},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "ambit.local/ambit:dev"}]},
        "status": {"phase": "Running", **more},
    }


STATUSES = [
    {
        "name": "agent",
        "restartCount": 2,
        "state": {"running": {}},
        "lastState": {"terminated": {"exitCode": 1, "reason": "Error"}},
    },
    {"name": "ztunnel", "restartCount": 0, "state": {"waiting": {"reason": "CrashLoopBackOff"}}},
]
OBJECTS = [
    pod("ambit-controller-a", "ambit-controller", "n1"),
    pod("ambit-node-a", "ambit-node", "n1", containerStatuses=STATUSES),
    pod("ambit-node-b", "ambit-node", "n2"),
    {"kind": "Broken"},
]
ANSWERS = {
    "15014 /ready": "ready",
    "15014 /debug/registry": {"workloads": []},
    "15000 /status": {"ready": True},
    "15016 /config": {"bpffs": "/b", "pods_cgroup": "/c"},
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    clusters: dict[object, KubeTarget] = {}
    monkeypatch.setattr("cli.target._clusters", clusters)
    monkeypatch.setenv("FAKE_KUBECTL", str(tmp_path))
    monkeypatch.setenv("AMBIT_KUBECTL", f"{sys.executable} {FAKE_KUBECTL}")
    (tmp_path / "objects.json").write_text(json.dumps({"items": OBJECTS}))
    (tmp_path / "answers.json").write_text(json.dumps(ANSWERS))
    (tmp_path / "log.txt").write_text("one\ntwo")
    yield tmp_path
    for cluster in clusters.values():
        cluster.close()


@pytest.fixture
def target(home: Path) -> Iterator[Target]:
    found = open_target(argparse.Namespace(lab=None, state=None, context="east", kubeconfig=None))
    assert isinstance(found, KubeTarget)
    yield found
    found.close()


def calls(home: Path) -> list[list[str]]:
    return [json.loads(line)[0] for line in (home / "calls.txt").read_text().splitlines()]


def test_objects_are_read_once_and_only_kinds_that_there_are(home: Path, target: Target) -> None:
    assert [p.name for p in target.objects().of("Pod")] == [
        "ambit-controller-a",
        "ambit-node-a",
        "ambit-node-b",
    ]
    assert target.nodes() == ("n1", "n2")
    (get,) = [words for words in calls(home) if words[0] == "get"]
    assert get[1] == "namespaces,pods,authorizationpolicies.security.istio.io"
    target.fresh().objects()
    assert sum(words[0] == "get" for words in calls(home)) == 2


def test_parts_are_asked_over_one_port_forward_a_pod(home: Path, target: Target) -> None:
    assert ask(target, CONTROLLER, "/debug/registry") == {"workloads": []}
    assert target.request(CONTROLLER, "/ready").text == "ready"
    assert ask(target, Part("ztunnel", "n2"), "/status") == {"ready": True}
    assert target.request(Part("agent", "n2"), "/nothing").status == 404
    forwards = [words for words in calls(home) if words[0] == "port-forward"]
    assert [words[5] for words in forwards] == ["pod/ambit-controller-a", "pod/ambit-node-b"]


def test_a_pod_that_cannot_be_reached_is_named(home: Path, target: Target) -> None:
    (home / "refuse").touch()
    with pytest.raises(UnreachableError, match="pod is not running"):
        target.request(Part("ztunnel", "n1"), "/status")
    with pytest.raises(UnreachableError, match="no pod of it runs"):
        target.request(Part("ztunnel", "n9"), "/status")


def test_programs_are_containers_with_their_last_end(target: Target) -> None:
    agent, ztunnel = target.programs()
    assert (agent.running, agent.restarts, agent.why) == (True, 2, "exit code 1, Error")
    assert (ztunnel.running, ztunnel.why) == (False, "CrashLoopBackOff")


def test_logs_labels_and_changes(home: Path, target: Target) -> None:
    assert target.log(Part("ztunnel", "n1"), lines=5) == ["one", "two"]
    target.set_labels("Namespace", "", "shop", ["a=b"])
    target.set_labels("Pod", "shop", "web", ["a-"])
    assert target.apply({"kind": "Gateway"}) == "serverside-applied"
    assert target.delete("Gateway", "shop", "x") is True
    asked = calls(home)
    assert ["logs", "-n", SYSTEM, "pod/ambit-node-a", "-c", "ztunnel", "--tail", "5"] in asked
    assert ["label", "namespace", "shop", "a=b", "--overwrite"] in asked
    assert ["label", "pod", "web", "-n", "shop", "a-", "--overwrite"] in asked
    assert json.loads((home / "calls.txt").read_text().splitlines()[-2])[1] == '{"kind": "Gateway"}'


def test_the_loader_runs_in_the_agent(home: Path, target: Target) -> None:
    assert target.bpf(("probe",)) == {"features": {"a": "ok"}}
    target.bpf(("status",), "n2")
    last = calls(home)[-1]
    assert last[3:6] == ["ambit-node-b", "-c", "agent"]
    assert "status -o json --bpffs /b --pods-cgroup /c" in last[-1]


def test_next_steps_are_commands_for_a_cluster(target: Target) -> None:
    assert target.command("check") == "ambit check --context east"
    assert target.command("lab logs ztunnel@n1 --tail 20") == (
        "kubectl --context east -n istio-system logs ds/ambit-node -c ztunnel --tail 20"
    )
    assert target.command("lab restart agent n1").endswith("rollout restart ds/ambit-node")


def test_without_kubectl_the_remedy_says_so(
    home: Path, monkeypatch: pytest.MonkeyPatch, target: Target
) -> None:
    monkeypatch.setenv("AMBIT_KUBECTL", "/nonexistent/kubectl")
    assert not usable()
    with pytest.raises(CliError) as error:
        open_target(argparse.Namespace(lab=None, state=None, context=None, kubeconfig=home / "k"))
    assert error.value.code is Code.NO_KUBECTL
    assert "install kubectl" in error.value.remedy


NODE = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {"name": "n1"},
    "status": {"nodeInfo": {"kubeletVersion": "v1.29.1", "kernelVersion": "5.15.0-generic"}},
}
LABELLED = {
    "apiVersion": "v1",
    "kind": "Namespace",
    "metadata": {"name": "shop", "labels": {"istio.io/dataplane-mode": "ambient"}},
}


def ambit(*words: str) -> int:
    return main.main([*words, "--context", "east"])


def put(home: Path, *objects: dict[str, Any]) -> None:
    (home / "objects.json").write_text(json.dumps({"items": [*OBJECTS, *objects]}))


def changes(home: Path) -> list[tuple[str, str]]:
    """Every call that changes or waits, with the first line of what was sent."""
    found = [json.loads(line) for line in (home / "calls.txt").read_text().splitlines()]
    kept = ("apply", "delete", "-n")
    return [(" ".join(words), text.partition("\n")[0]) for words, text in found if words[0] in kept]


def test_install_applies_what_is_missing_and_waits(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(home, NODE)
    assert ambit("install", "--image", "registry/ambit:1") == 0
    apply = "apply --server-side --force-conflicts -f -"
    wait = "-n istio-system rollout status {} --timeout=180s"
    definitions, mesh, *waits = changes(home)
    assert definitions[0] == mesh[0] == apply
    assert [words for words, _ in waits] == [
        wait.format("deployment/ambit-controller"),
        wait.format("daemonset/ambit-node"),
    ]
    sent = [json.loads(line)[1] for line in (home / "calls.txt").read_text().splitlines()]
    assert "kind: kubernetes\nimage: registry/ambit:1\n" in sent
    assert not any("authorizationpolicies.security.istio.io" in text for text in sent)
    err = capsys.readouterr().err
    assert "node n1 runs Kubernetes v1.29.1; 1.30 or newer" in err
    assert "node n1 has kernel 5.15.0-generic" in err
    assert "next: `ambit enroll ns/NAMESPACE --context east`" in err


def test_install_that_is_not_ready_in_time(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "late").touch()
    assert ambit("install", "--timeout", "5s") == 124
    assert "deployment/ambit-controller is not ready after 5 s" in capsys.readouterr().err


def test_a_dry_run_prints_and_asks_no_cluster(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["install", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "kind: CustomResourceDefinition" in out
    assert "kind: kubernetes" in out
    assert {words[0] for words in calls(home)} == {"kustomize"}


def test_uninstall_keeps_the_order_and_refuses_while_pods_are_in(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(home, LABELLED)
    assert ambit("uninstall") == 1
    assert "of shop would leave the mesh and talk in plaintext" in capsys.readouterr().err
    assert changes(home) == []
    assert ambit("uninstall", "--force") == 0
    assert changes(home) == [
        ("-n istio-system delete daemonset ambit-node --ignore-not-found", ""),
        ("apply --server-side --force-conflicts -f -", "kind: uninstall"),
        ("-n istio-system rollout status daemonset/ambit-cleanup --timeout=180s", ""),
        ("delete --ignore-not-found -f -", "kind: uninstall"),
        ("delete --ignore-not-found -f -", "kind: kubernetes"),
    ]


@pytest.mark.parametrize(
    ("text", "version"), [("v1.35.4", (1, 35)), ("6.18.0-1-cloud", (6, 18)), ("1.30+", (1, 30)), ("", (0, 0))]
)
def test_versions(text: str, version: tuple[int, int]) -> None:
    assert version_of(text) == version
