# SPDX-License-Identifier: Apache-2.0
"""Containers as specifications: environment, user, capabilities, mounts, files."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lab import podspec
from lab.container import DEFAULT_CAPABILITIES
from lab.layout import Layout

LAYOUT = Layout(name="t", state=Path("/run/ambit/t"), cgroup_mount=Path("/cg"))
DATA = {("ConfigMap", "site"): {"a": "1", "b": "2"}, ("Secret", "key"): {"pw": "s3"}}


def lookup(kind: str, name: str) -> Mapping[str, str] | None:
    return DATA.get((kind, name))


def pod(container: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "web", "namespace": "shop", "uid": "u1", "labels": {"app": "web"}},
        "spec": {"nodeName": "node1", "containers": [container], **spec},
        "status": {"podIP": "10.244.0.2", "podIPs": [{"ip": "10.244.0.2"}, {"ip": "fd00::2"}]},
    }


def make(container: dict[str, Any], **spec: Any) -> dict[str, Any]:
    container = {"name": "c", "command": ["run"], **container}
    return podspec.container_spec(pod(container, **spec), container, LAYOUT, lookup)


def env_of(*entries: dict[str, Any]) -> dict[str, str]:
    env: dict[str, str] = make({"env": list(entries)})["env"]
    return env


@pytest.mark.parametrize(
    ("text", "result"),
    [("$(A)x", "1x"), ("$(B)", "$(B)"), ("$$(A)", "$(A)"), ("$A", "$A"), ("$(A)$(A)", "11")],
)
def test_references_are_expanded(text: str, result: str) -> None:
    assert podspec.expand(text, {"A": "1"}) == result


def test_command_and_args_see_the_environment() -> None:
    spec = make({"command": ["run", "$(P)"], "args": ["$(Q)"], "env": [{"name": "P", "value": "8080"}]})
    assert spec["argv"] == ["run", "8080", "$(Q)"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("metadata.name", "web"),
        ("metadata.labels['app']", "web"),
        ("spec.nodeName", "node1"),
        ("status.podIP", "10.244.0.2"),
        ("status.podIPs", "10.244.0.2,fd00::2"),
    ],
)
def test_fields_of_the_pod(path: str, value: str) -> None:
    assert env_of({"name": "X", "valueFrom": {"fieldRef": {"fieldPath": path}}})["X"] == value


def test_keys_of_config_maps_and_secrets() -> None:
    env = env_of(
        {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "site", "key": "a"}}},
        {"name": "P", "valueFrom": {"secretKeyRef": {"name": "key", "key": "pw"}}},
        {"name": "O", "valueFrom": {"secretKeyRef": {"name": "no", "key": "x", "optional": True}}},
    )
    assert (env["A"], env["P"], "O" in env) == ("1", "s3", False)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"configMapKeyRef": {"name": "no", "key": "a"}}, "ConfigMap no does not exist"),
        ({"configMapKeyRef": {"name": "site", "key": "z"}}, "ConfigMap site has no key z"),
        ({"fieldRef": {"fieldPath": "spec.magic"}}, "fieldRef spec.magic"),
        ({"resourceFieldRef": {"resource": "limits.cpu"}}, "resourceFieldRef"),
    ],
)
def test_what_is_not_there_is_named(source: dict[str, Any], words: str) -> None:
    with pytest.raises(podspec.PodSpecError, match=words):
        env_of({"name": "X", "valueFrom": source})


def test_whole_config_maps_with_a_prefix() -> None:
    env = make({"envFrom": [{"prefix": "S_", "configMapRef": {"name": "site"}}]})["env"]
    assert (env["S_a"], env["S_b"]) == ("1", "2")


def test_capabilities_are_containerds_unless_said() -> None:
    def kept(**wanted: list[str]) -> set[str]:
        return set(make({"securityContext": {"capabilities": wanted}})["capabilities"])

    assert kept() == DEFAULT_CAPABILITIES
    assert "NET_ADMIN" not in kept()
    assert kept(drop=["ALL"], add=["NET_BIND_SERVICE"]) == {"NET_BIND_SERVICE"}
    assert kept(add=["CAP_NET_ADMIN"]) == {*DEFAULT_CAPABILITIES, "NET_ADMIN"}


def test_the_containers_user_wins_over_the_pods() -> None:
    spec = make({"securityContext": {"runAsUser": 7}}, securityContext={"runAsUser": 5, "runAsGroup": 6})
    assert (spec["uid"], spec["gid"]) == (7, 6)
    assert make({})["uid"] is None


def test_a_volume_of_a_config_map_is_read_only() -> None:
    spec = make(
        {"volumeMounts": [{"name": "v", "mountPath": "/tmp/v"}, {"name": "e", "mountPath": "/tmp/e"}]},
        volumes=[{"name": "v", "configMap": {"name": "site"}}, {"name": "e", "emptyDir": {}}],
    )
    mounts = {m["target"]: m for m in spec["mounts"]}
    assert mounts["/tmp/v"]["read_only"]
    assert not mounts["/tmp/e"]["read_only"]
    assert mounts["/tmp/e"]["source"] == "/run/ambit/t/pods/shop/web/volumes/e"
    assert mounts["/etc/resolv.conf"]["file"]


def test_a_state_directory_that_a_pod_could_see_is_covered() -> None:
    container = {"name": "c", "command": ["run"]}
    seen = Layout(name="t", state=Path("/srv/lab"))
    assert "/srv/lab" in podspec.container_spec(pod(container), container, seen, lookup)["covered"]


def test_files_of_volumes() -> None:
    volumes = [
        {"name": "v", "configMap": {"name": "site", "items": [{"key": "a", "path": "x/y"}]}},
        {"name": "s", "secret": {"secretName": "key", "defaultMode": 0o600}},
        {"name": "e", "emptyDir": {}},
    ]
    files = podspec.volume_files(pod({}, volumes=volumes), lookup)
    assert [(f.volume, dict(f.files), f.mode) for f in files] == [
        ("v", {"x/y": "1"}, 0o644),
        ("s", {"pw": "s3"}, 0o600),
    ]


def test_secrets_are_base64_and_string_data_wins() -> None:
    data = {
        "metadata": {"name": "k"},
        "data": {"a": base64.b64encode(b"x").decode(), "b": "eQ=="},
        "stringData": {"b": "z"},
    }
    assert podspec.decoded("Secret", data) == {"a": "x", "b": "z"}
    with pytest.raises(podspec.PodSpecError, match="k: a is not base64"):
        podspec.decoded("Secret", {"metadata": {"name": "k"}, "data": {"a": "%"}})


def test_resolv_conf_of_the_cluster_and_of_ones_own() -> None:
    assert podspec.resolv_conf(pod({})).splitlines() == [
        "search shop.svc.cluster.local svc.cluster.local cluster.local",
        "nameserver 10.96.0.10",
        "options ndots:5",
    ]
    own = pod({}, dnsPolicy="None", dnsConfig={"nameservers": ["9.9.9.9"], "options": [{"name": "rotate"}]})
    assert podspec.resolv_conf(own) == "nameserver 9.9.9.9\noptions rotate\n"
