# SPDX-License-Identifier: Apache-2.0
"""The controller process on a real API server, with the rights of our manifests and no more."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mesh.identity.ca_client import CaClient, CaError, CaSettings
from mesh.identity.certificate import WorkloadCertificate
from mesh.identity.spiffe import SpiffeId
from mesh.runtime.clock import SystemClock
from tests.kube_api.conftest import definitions
from tests.kube_api.control_plane import ROOT, ControlPlane, free_port
from tests.support.eventually import eventually

TIMEOUT_S = 60.0


class Controller:
    """One replica as a process."""

    def __init__(self, kubeconfig: Path, name: str, directory: Path) -> None:
        self.xds_port, self.admin_port = free_port(), free_port()
        self.log_file = directory / f"{name}.log"
        command = [
            *(sys.executable, "-m", "controller", "--kubernetes", f"--kubeconfig={kubeconfig}"),
            *(f"--xds-listen=127.0.0.1:{self.xds_port}", f"--admin-listen=127.0.0.1:{self.admin_port}"),
        ]
        with self.log_file.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "POD_NAME": name},
            )

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}{path}", timeout=5) as response:
            return json.load(response)

    def ready(self) -> bool:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{self.admin_port}/healthz/ready", timeout=5
        ) as response:
            return bool(response.status == 200)

    def registry(self, kind: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.get("/debug/registry")[kind]
        return found

    def log(self) -> str:
        return self.log_file.read_text()

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        self._process.send_signal(how)
        return self._process.wait(timeout=30)


@pytest.fixture
def plane(control_plane: ControlPlane) -> Iterator[ControlPlane]:
    yield control_plane
    for kind, name in (("secret", "ambit-ca"), ("lease", "ambit-controller")):
        control_plane.kubectl("-n", "istio-system", "delete", kind, name, "--ignore-not-found")


Start = Callable[[str], Controller]


@pytest.fixture
def start(plane: ControlPlane, tmp_path: Path) -> Iterator[Start]:
    """Start replicas under the account of our manifests; whatever still runs is killed afterwards."""
    kubeconfig = plane.kubeconfig_of(plane.token("istio-system", "ambit-controller"), "controller")
    running: list[Controller] = []

    def begin(name: str) -> Controller:
        running.append(Controller(kubeconfig, name, tmp_path))
        return running[-1]

    yield begin
    for controller in running:
        controller.end(signal.SIGKILL)


def until(condition: Callable[[], Any], what: str, *controllers: Controller) -> Any:
    try:
        return eventually(condition, what, TIMEOUT_S)
    except AssertionError as error:
        logs = "\n".join(controller.log()[-3000:] for controller in controllers)
        raise AssertionError(f"{error}\n{logs}") from error


@contextmanager
def namespace(plane: ControlPlane, name: str, **labels: str) -> Iterator[str]:
    metadata = {"name": name, "labels": labels}
    plane.apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "web", "namespace": name}},
    )
    yield name
    plane.kubectl("-n", name, "delete", "pods,services,serviceaccounts,configmaps", "--all", "--force")


SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "web"},
    "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]},
}


def test_what_kubectl_applies_is_in_the_registry_and_the_root_in_every_namespace(
    plane: ControlPlane, start: Start
) -> None:
    with namespace(plane, "registry"):
        controller = start("one")
        until(controller.ready, "ready", controller)
        uid = plane.pod("registry", "web", account="web")
        plane.apply({**SERVICE, "metadata": {"name": "web", "namespace": "registry"}})

        def found() -> bool:
            uids = [workload["uid"] for workload in controller.registry("workloads")]
            hosts = [str(service) for service in controller.registry("services")]
            return any(uid in str(entry) or "registry/web" in str(entry) for entry in uids) and any(
                "web.registry.svc.cluster.local" in host for host in hosts
            )

        until(found, f"pod {uid} and its service", controller)
        root = until(
            lambda: plane.get("configmap", "registry", "istio-ca-root-cert")["data"]["root-cert.pem"],
            "the root certificate",
            controller,
        )
        assert root.startswith("-----BEGIN CERTIFICATE-----")
        plane.kubectl("-n", "registry", "delete", "pod", "web", "--force")
        until(
            lambda: not any("registry" in str(w["uid"]) for w in controller.registry("workloads")),
            "no pod",
            controller,
        )
        states = {row["kind"]: row for row in controller.get("/debug/source")}
        assert states["Pod"]["state"] == "followed"
        assert not any(row["failure"] for row in states.values()), states
        with urllib.request.urlopen(f"http://127.0.0.1:{controller.admin_port}/metrics", timeout=5) as answer:
            assert 'ambit_objects_unfollowed_seconds{kind="Pod"} 0.0' in answer.read().decode()
        assert controller.end() == 0
        assert "cannot be written" not in controller.log()


def test_annotated_pods_are_reached_by_hbone(plane: ControlPlane, start: Start) -> None:
    with namespace(plane, "hbone"):
        plane.pod("hbone", "web", account="web")
        controller = start("one")
        until(controller.ready, "ready", controller)

        def protocol() -> str:
            (found,) = [w for w in controller.registry("workloads") if w["namespace"] == "hbone"]
            return str(found["tunnel_protocol"])

        before = until(protocol, "the workload", controller)
        plane.kubectl("-n", "hbone", "annotate", "pod", "web", "ambient.istio.io/redirection=enabled")
        after = until(lambda: protocol() != before and protocol(), "another protocol", controller)
        assert "HBONE" in after.upper()


def test_the_registry_goes_on_through_a_restart_of_the_api_server(plane: ControlPlane, start: Start) -> None:
    with namespace(plane, "restart"):
        plane.apply({**SERVICE, "metadata": {"name": "before", "namespace": "restart"}})
        controller = start("one")
        until(controller.ready, "ready", controller)
        plane.kill_apiserver()
        assert any("before.restart" in str(s) for s in controller.registry("services"))
        plane.start_apiserver()
        plane.apply({**SERVICE, "metadata": {"name": "after", "namespace": "restart"}})

        def both() -> bool:
            text = str(controller.registry("services"))
            assert "before.restart" in text, "an object was lost"
            return "after.restart" in text

        until(both, "the new service", controller)


async def certificate(
    plane: ControlPlane, controller: Controller, token: str, directory: Path, *, account: str = "web"
) -> WorkloadCertificate:
    root = until(
        lambda: plane.get("configmap", "tokens", "istio-ca-root-cert")["data"]["root-cert.pem"],
        "the root certificate",
        controller,
    )
    (directory / "root.pem").write_text(root)
    (directory / "token").write_text(token)
    settings = CaSettings(
        address=f"127.0.0.1:{controller.xds_port}",
        roots=directory / "root.pem",
        token=directory / "token",
        server_name="istiod.istio-system.svc",
        impersonate=False,
    )
    return await CaClient(settings, SystemClock()).fetch(SpiffeId("cluster.local", "tokens", account))


async def test_a_projected_token_gets_a_certificate_and_a_wrong_one_does_not(
    plane: ControlPlane, start: Start, tmp_path: Path
) -> None:
    with namespace(plane, "tokens"):
        uid = plane.pod("tokens", "web", account="web")
        controller = start("one")
        until(controller.ready, "ready", controller)
        until(lambda: "tokens" in str(controller.registry("workloads")), "the pod", controller)
        good = plane.token("tokens", "web", audience="istio-ca", pod="web", uid=uid)
        issued = await certificate(plane, controller, good, tmp_path)
        assert str(issued.identity) == "spiffe://cluster.local/ns/tokens/sa/web"
        for wrong, reason in (
            (plane.token("tokens", "web", pod="web", uid=uid), "audience|not accept the token"),
            (plane.token("tokens", "web", audience="istio-ca"), "names no pod-name"),
            (good[:-8] + "AAAAAAAA", "not accept the token"),
        ):
            with pytest.raises(CaError, match=reason):
                await certificate(plane, controller, wrong, tmp_path)
        # A token dies with its pod.
        plane.kubectl("-n", "tokens", "delete", "pod", "web", "--force")
        plane.pod("tokens", "web", account="web")
        with pytest.raises(CaError):
            await certificate(plane, controller, good, tmp_path)


def test_two_replicas_share_one_root_and_one_of_them_writes(plane: ControlPlane, start: Start) -> None:
    with namespace(plane, "replicas"):
        first, second = start("first"), start("second")
        for controller in (first, second):
            until(controller.ready, "ready", first, second)
        until(lambda: "this replica" in first.log() + second.log(), "a leader", first, second)
        leading = [c for c in (first, second) if "this replica" in c.log()]
        assert len(leading) == 1
        other = second if leading[0] is first else first
        bundle = plane.get("secret", "istio-system", "ambit-ca")["data"]["signing-cert.pem"]
        assert leading[0].end() == 0
        until(lambda: "this replica" in other.log(), "the other to lead", first, second)
        assert plane.get("secret", "istio-system", "ambit-ca")["data"]["signing-cert.pem"] == bundle
        plane.kubectl("-n", "replicas", "delete", "configmap", "istio-ca-root-cert", "--ignore-not-found")
        until(
            lambda: plane.get("configmap", "replicas", "istio-ca-root-cert")["data"],
            "the other to write",
            other,
        )
        holder = plane.get("lease", "istio-system", "ambit-controller")["spec"]["holderIdentity"]
        assert holder.startswith("second-" if other is second else "first-")


def test_a_waypoints_gateway_gets_its_objects_and_its_status(plane: ControlPlane, start: Start) -> None:
    names = [f"{kind}.gateway.networking.k8s.io" for kind in ("gateways", "gatewayclasses", "httproutes")]
    plane.apply(*definitions(*names))
    for name in names:
        plane.kubectl("wait", "--for=condition=Established", "crd", name, "--timeout=60s")
    with namespace(plane, "waypoints"):
        controller = start("one")
        until(controller.ready, "ready", controller)
        plane.apply(
            {
                "apiVersion": "gateway.networking.k8s.io/v1",
                "kind": "GatewayClass",
                "metadata": {"name": "istio-waypoint"},
                "spec": {"controllerName": "istio.io/mesh-controller"},
            },
            {
                "apiVersion": "gateway.networking.k8s.io/v1",
                "kind": "Gateway",
                "metadata": {"name": "waypoint", "namespace": "waypoints"},
                "spec": {
                    "gatewayClassName": "istio-waypoint",
                    "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}],
                },
            },
        )
        deployment = until(
            lambda: plane.get("deployment", "waypoints", "waypoint"), "the waypoint's Deployment", controller
        )
        (owner,) = deployment["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["name"]) == ("Gateway", "waypoint")

        def programmed() -> dict[str, Any] | None:
            status = plane.get("gateway", "waypoints", "waypoint").get("status", {})
            return next(
                (c for c in status.get("conditions", []) if c["reason"] == "AddressNotAssigned"), None
            )

        assert until(programmed, "the Gateway's status", controller)["status"] == "False"
        # Undone by hand, done again.
        plane.kubectl("-n", "waypoints", "delete", "deployment", "waypoint")
        until(lambda: plane.get("deployment", "waypoints", "waypoint"), "it to be made again", controller)
        plane.kubectl("-n", "waypoints", "delete", "gateway", "waypoint")
        assert controller.end() == 0
        assert "cannot be written" not in controller.log(), controller.log()
        # What was written once is written no more.
        assert controller.log().count("Gateway waypoints/waypoint: status written") <= 3
    plane.kubectl("delete", "crd", *names, "--timeout=60s")


def test_policies_and_services_are_told_what_became_of_them(plane: ControlPlane, start: Start) -> None:
    name = "authorizationpolicies.security.istio.io"
    plane.apply(*definitions(name))
    plane.kubectl("wait", "--for=condition=Established", "crd", name, "--timeout=60s")
    with namespace(plane, "told"):
        plane.apply(
            {
                "apiVersion": "security.istio.io/v1",
                "kind": "AuthorizationPolicy",
                "metadata": {"name": "deny", "namespace": "told"},
                "spec": {"action": "DENY", "rules": [{"from": [{"source": {"namespaces": ["evil"]}}]}]},
            },
            {
                **SERVICE,
                "metadata": {
                    "name": "bound",
                    "namespace": "told",
                    "labels": {"istio.io/use-waypoint": "missing"},
                },
            },
        )
        # A condition of somebody else, which has to stay.
        foreign = {
            "type": "example.com/Theirs",
            "status": "True",
            "reason": "Theirs",
            "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
        patch = json.dumps({"status": {"conditions": [foreign]}})
        flags = ("--subresource=status", "--type=merge", "-p", patch)
        plane.kubectl("-n", "told", "patch", "service", "bound", *flags)
        controller = start("one")
        until(controller.ready, "ready", controller)

        def conditions(kind: str, of: str) -> dict[str, dict[str, Any]]:
            found = plane.get(kind, "told", of).get("status", {}).get("conditions", [])
            return {entry["type"]: entry for entry in found}

        accepted = until(
            lambda: conditions("authorizationpolicy", "deny").get("ZtunnelAccepted"), "the policy", controller
        )
        assert accepted["status"] == "True"
        bound = until(
            lambda: conditions("service", "bound").get("istio.io/WaypointBound"), "the service", controller
        )
        assert bound["status"] == "False"
        assert conditions("service", "bound")["example.com/Theirs"] == foreign
        assert controller.end() == 0
        assert controller.log().count("Service told/bound: status written") == 1
    plane.kubectl("delete", "crd", name, "--timeout=60s")
