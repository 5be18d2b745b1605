# SPDX-License-Identifier: Apache-2.0
"""The manifests for Kubernetes agree with the code: rights, settings, and nothing that is not there."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from controller.kubernetes.ca_secret import SECRET
from controller.kubernetes.kinds import kinds
from controller.kubernetes.lease import LEASE
from daemonset import config, host
from daemonset.kube import kinds_of
from mesh.config.kube_store import Kind
from ztunnel.config import read_config

MANIFESTS = Path(__file__).resolve().parents[3] / "daemonset" / "manifests" / "kubernetes"
SYSTEM = "istio-system"
Object = dict[str, Any]


def load(name: str) -> list[Object]:
    return [item for item in yaml.safe_load_all((MANIFESTS / name).read_text()) if item]


def the(name: str, kind: str, called: str) -> Object:
    (found,) = (o for o in load(name) if o["kind"] == kind and o["metadata"]["name"] == called)
    return found


def granted(rules: Iterable[Object], kind: Kind, verb: str) -> bool:
    """Whether rules let a kind be read to the extent in which it is followed."""
    field, _, value = kind.field_selector.partition("=")
    return any(
        kind.group in rule["apiGroups"]
        and kind.plural in rule["resources"]
        and verb in rule["verbs"]
        and ("resourceNames" not in rule or (field == "metadata.name" and value in rule["resourceNames"]))
        for rule in rules
    )


@pytest.mark.parametrize("kind", kinds(SYSTEM), ids=str)
@pytest.mark.parametrize("verb", ["list", "watch"])
def test_the_controller_may_read_what_it_follows(kind: Kind, verb: str) -> None:
    rules = list(the("controller-rbac.yaml", "ClusterRole", "ambit-controller")["rules"])
    if kind.namespace:
        rules += the("controller-rbac.yaml", "Role", "ambit-controller")["rules"]
    assert granted(rules, kind, verb)


def test_the_controller_may_keep_its_secret_and_lease() -> None:
    rules = the("controller-rbac.yaml", "Role", "ambit-controller")["rules"]
    named = {name for rule in rules for name in rule.get("resourceNames", ())}
    assert {SECRET, LEASE} <= named


@pytest.mark.parametrize("kind", kinds_of("n1"), ids=str)
def test_the_agent_may_read_what_it_follows(kind: Kind) -> None:
    rules = the("node-rbac.yaml", "ClusterRole", "ambit-agent")["rules"]
    assert all(granted(rules, kind, verb) for verb in ("list", "watch"))


def test_no_right_is_a_wildcard() -> None:
    roles = [o for name in ("controller-rbac.yaml", "node-rbac.yaml") for o in load(name) if "rules" in o]
    assert roles
    for role in roles:
        for rule in role["rules"]:
            assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]], role["metadata"][
                "name"
            ]


def pod(name: str = "node.yaml", called: str = "ambit-node") -> Object:
    found: Object = the(name, "DaemonSet", called)["spec"]["template"]["spec"]
    return found


def container(called: str) -> Object:
    spec = pod()
    (found,) = (c for c in spec["initContainers"] + spec["containers"] if c["name"] == called)
    return dict(found)


def environment(found: Object) -> dict[str, str]:
    return {item["name"]: item.get("value", "from-the-pod") for item in found["env"]}


def test_the_agent_takes_its_settings() -> None:
    told = host.complete(environment(container("agent")), mount=Path("/sys/fs/cgroup"))
    settings = config.parse(told)
    assert settings.pod_uid
    assert not settings.objects
    assert settings.cni_bin_dir


def test_ztunnel_takes_its_settings_and_meets_the_agent() -> None:
    settings = read_config(environment(container("ztunnel")))
    agent = environment(container("agent"))
    assert str(settings.inpod_uds) == agent["INPOD_UDS"]
    assert str(settings.data_plane.bpffs) == agent["AMBIT_BPFFS"]


def test_cleanup_names_the_same_places_as_the_agent() -> None:
    (cleanup,) = pod("uninstall/cleanup.yaml", "ambit-cleanup")["initContainers"]
    agent, same = environment(container("agent")), environment(cleanup)
    assert {k: v for k, v in same.items() if k != "INPOD_UDS"}.items() <= agent.items()
    mounts = {m["name"]: m for m in cleanup["volumeMounts"]}
    assert all(mounts.get(m["name"], m) == m for m in container("agent")["volumeMounts"])


def test_only_the_agent_is_privileged() -> None:
    spec = pod()
    for found in spec["initContainers"] + spec["containers"]:
        security = found["securityContext"]
        assert security["readOnlyRootFilesystem"]
        if found["name"] != "agent":
            assert "privileged" not in security
            assert security["capabilities"] == {"drop": ["ALL"], "add": ["SYS_ADMIN", "NET_ADMIN"]}


def test_ztunnel_has_no_token_for_the_api_server() -> None:
    spec = pod()
    assert not spec["automountServiceAccountToken"]
    volumes = {v["name"]: v for v in spec["volumes"]}
    mounted = [volumes[m["name"]] for m in container("ztunnel")["volumeMounts"]]
    tokens = [
        source["serviceAccountToken"]
        for volume in mounted
        for source in volume.get("projected", {}).get("sources", ())
        if "serviceAccountToken" in source
    ]
    assert [token["audience"] for token in tokens] == ["istio-ca"]


@pytest.mark.parametrize("directory", [".", "crds", "uninstall", "monitoring"])
def test_a_kustomization_names_what_is_there(directory: str) -> None:
    (kustomization,) = load(f"{directory}/kustomization.yaml")
    for name in kustomization["resources"]:
        for item in load(f"{directory}/{name}"):
            assert item["apiVersion"]
            assert item["metadata"]["name"]
