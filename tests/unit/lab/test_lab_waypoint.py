# SPDX-License-Identifier: Apache-2.0
"""Waypoint pods in a lab: what is added to the manifest that a cluster gets."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from controller.translate.mesh import Options, translate
from lab import podspec, waypoint
from lab.container import DEFAULT_CAPABILITIES
from lab.layout import Layout
from lab.manifests import check
from mesh.config.objects import make_object

LAYOUT = Layout(name="t", state=Path("/run/ambit/t"), slot=3, cgroup_mount=Path("/cg"))
GATEWAY = """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: shop}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
"""


def deployment() -> dict[str, Any]:
    gateway = make_object(yaml.safe_load(GATEWAY))
    found = translate({gateway.key: gateway}, Options()).derived
    (data,) = (data for data in found if data["kind"] == "Deployment")
    return data


def pod() -> dict[str, Any]:
    template = deployment()["spec"]["template"]
    return {
        "metadata": {**template["metadata"], "name": "wp-1", "namespace": "shop", "uid": "u1"},
        "spec": {**template["spec"], "nodeName": "node1"},
        "status": {"podIP": "10.244.0.2", "podIPs": [{"ip": "10.244.0.2"}]},
    }


def specification(data: dict[str, Any]) -> dict[str, Any]:
    return podspec.container_spec(data, data["spec"]["containers"][0], LAYOUT, lambda *_: {})


def test_the_derived_deployment_is_one_that_a_lab_runs() -> None:
    assert check([make_object(deployment())]) == []


def test_the_labs_python_runs_the_waypoint() -> None:
    made = specification(pod())
    assert made["argv"] == [sys.executable, "-m", "waypoint"]
    assert Path(made["env"]["PYTHONPATH"], "waypoint").is_dir()
    assert (made["uid"], made["capabilities"]) == (None, sorted(DEFAULT_CAPABILITIES))


def test_the_environment_is_that_of_the_pod() -> None:
    env = specification(pod())["env"]
    wanted = {
        "POD_NAME": "wp-1",
        "POD_NAMESPACE": "shop",
        "SERVICE_ACCOUNT": "wp",
        "INSTANCE_IP": "10.244.0.2",
        "NODE_NAME": "node1",
        "GATEWAY_NAME": "wp",
        "XDS_ADDRESS": "https://ambit-controller.istio-system.svc:15012",
    }
    assert {name: env[name] for name in wanted} == wanted


def test_token_and_root_are_where_the_environment_says() -> None:
    made = specification(pod())
    sources = {mount["target"]: mount["source"] for mount in made["mounts"]}
    directory = LAYOUT.pod_dir("shop", "wp-1")
    assert sources[made["env"]["AUTH_TOKEN"].rpartition("/")[0]] == str(directory / "secrets")
    assert sources[made["env"]["XDS_ROOT_CA"].rpartition("/")[0]] == str(directory / "volumes/istiod-ca-cert")


def test_the_controllers_name_leads_to_the_machines_end_of_the_nodes_link() -> None:
    (node,) = LAYOUT.nodes
    assert waypoint.aliases(pod(), node) == [
        "198.18.3.1 ambit-controller.istio-system.svc ambit-controller.istio-system.svc.cluster.local"
    ]
    assert podspec.hosts(pod(), ["10.244.0.2"], ["x y"]).splitlines()[-1] == "x y"


def test_other_pods_are_left_alone() -> None:
    data = pod()
    del data["metadata"]["labels"][waypoint.MANAGED_LABEL]
    (node,) = LAYOUT.nodes
    assert waypoint.aliases(data, node) == []
    made = specification(data)
    assert (made["argv"][0], made["uid"], made["capabilities"]) == ("python", 1337, [])


@pytest.mark.parametrize(
    ("status", "why"),
    [
        ({}, "the controller has not seen it yet"),
        ({"conditions": [{"type": "Programmed", "status": "False", "message": "Waiting"}]}, "Waiting"),
        ({"conditions": [{"type": "Programmed", "status": "True", "message": "m"}]}, ""),
    ],
)
def test_a_lab_is_up_when_its_waypoints_are_in_use(status: dict[str, Any], why: str) -> None:
    data = yaml.safe_load(GATEWAY) | {"status": status}
    assert waypoint.why_not_programmed(make_object(data)) == why


@pytest.mark.parametrize(
    "text",
    [
        GATEWAY.replace("istio-waypoint", "nginx"),
        GATEWAY.replace("name: wp,", "name: wp, labels: {istio.io/rev: foo},"),
    ],
)
def test_gateways_that_others_run_are_not_waited_for(text: str) -> None:
    assert waypoint.why_not_programmed(make_object(yaml.safe_load(text))) == ""
