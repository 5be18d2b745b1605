# SPDX-License-Identifier: Apache-2.0
"""The controller process as a waypoint meets it: configuration, its own certificate, and nobody else's."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mesh.identity.ca_client import CaClient, CaError, CaSettings
from mesh.identity.spiffe import SpiffeId
from mesh.identity.token import TokenClaims, new_signing_key, sign_token
from mesh.runtime.clock import SystemClock
from mesh.runtime.tasks import TaskOwner, create_task
from mesh.xds.client import Node, Settings, XdsClient
from mesh.xds.destinations import (
    DESTINATION_TYPE,
    ENDPOINT_LABELS_TYPE,
    decode_destination_policy,
    decode_endpoint_labels,
)
from mesh.xds.http_policy import HTTP_AUTHORIZATION_TYPE, decode_http_authorization
from mesh.xds.resource import ADDRESS_TYPE, AUTHORIZATION_TYPE, Rejection, Update
from mesh.xds.routes import ROUTE_TABLE_TYPE, decode_route_table
from tests.support.eventually import eventually, eventually_async

REPOSITORY = Path(__file__).resolve().parents[2]
TYPES = (
    *(ADDRESS_TYPE, AUTHORIZATION_TYPE, HTTP_AUTHORIZATION_TYPE),
    *(ENDPOINT_LABELS_TYPE, DESTINATION_TYPE, ROUTE_TABLE_TYPE),
)
OBJECTS = """
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/use-waypoint: wp}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.20, selector: {app: web}, ports: [{name: http, port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: shop}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
apiVersion: v1
kind: Pod
metadata: {name: wp-1, namespace: shop, uid: u1, labels: {gateway.networking.k8s.io/gateway-name: wp}}
spec: {nodeName: n1, serviceAccountName: wp}
status: {podIP: 10.244.0.9}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, uid: u2, labels: {app: web, version: v2}}
spec: {nodeName: n1, serviceAccountName: web}
status: {podIP: 10.244.0.8}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-a, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.244.0.8], targetRef: {kind: Pod, name: web-1, namespace: shop}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: shop}
spec:
  host: web
  trafficPolicy: {connectionPool: {http: {http2MaxRequests: 7}}}
  subsets: [{name: v2, labels: {version: v2}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: p, namespace: shop}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: wp}]
  action: DENY
  rules: [{to: [{operation: {paths: [/admin*]}}]}]
"""
SECURED = """
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIP: 10.96.0.21, ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: db, namespace: shop}
spec: {host: db, trafficPolicy: {tls: {mode: SIMPLE}}}
"""
ROUTE = """
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: web}]
  rules: [{backendRefs: [{name: web, port: 80, weight: %d}]}]
"""


@dataclass(slots=True)
class Controller:
    """A running controller and its directories."""

    state: Path
    port: int
    private_pem: bytes

    def token(self, pod: str, uid: str, account: str) -> Path:
        claims = TokenClaims(namespace="shop", service_account=account, pod_name=pod, pod_uid=uid, node="n1")
        path = self.state / f"token-{pod}"
        path.write_text(sign_token(claims, self.private_pem, now_s=time.time(), ttl_s=3600))
        return path


@dataclass(slots=True)
class Proxy:
    """A client that keeps what it is told."""

    values: dict[str, dict[str, bytes]] = field(default_factory=lambda: {each: {} for each in TYPES})
    order: list[tuple[str, bool]] = field(default_factory=list)
    """Types as they came, and whether something of them was removed."""

    def apply(self, update: Update) -> Sequence[Rejection]:
        self.order.append((update.type_url, bool(update.removed)))
        for name in update.removed:
            self.values[update.type_url].pop(name, None)
        self.values[update.type_url].update({r.name: r.value for r in update.upserted})
        return ()


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[Controller]:
    private_pem, public_pem = new_signing_key()
    (tmp_path / "signer.pub").write_bytes(public_pem)
    (tmp_path / "objects").mkdir()
    (tmp_path / "objects" / "all.yaml").write_text(OBJECTS)
    (tmp_path / "objects" / "route.yaml").write_text(ROUTE % 1)
    ports = []
    for _ in range(2):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            ports.append(taken.getsockname()[1])
    xds, admin = ports
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "controller",
                "--objects", str(tmp_path / "objects"), "--generated", str(tmp_path / "generated"),
                "--ca-dir", str(tmp_path / "ca"), "--token-key", str(tmp_path / "signer.pub"),
                "--xds-listen", f"127.0.0.1:{xds}", "--admin-listen", f"127.0.0.1:{admin}",
            ],
            cwd=REPOSITORY, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )  # fmt: skip
    try:
        eventually((tmp_path / "generated" / "Gateway" / "shop" / "wp.yaml").exists, "the first translation")
        yield Controller(tmp_path, xds, private_pem)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, (tmp_path / "log").read_text()


def client_of(controller: Controller, token: Path, proxy: Proxy) -> XdsClient:
    return XdsClient(
        settings=Settings(
            address=f"https://localhost:{controller.port}",
            roots=controller.state / "ca" / "root-cert.pem",
            token=token,
        ),
        node=Node(id="waypoint~10.244.0.9~wp-1.shop~shop.svc.cluster.local", metadata={}),
        types=TYPES,
        on_update=proxy.apply,
        clock=SystemClock(),
    )


def test_a_waypoint_reads_routes_and_policies_and_their_changes(controller: Controller) -> None:
    async def main() -> None:
        proxy, owner = Proxy(), TaskOwner("test")
        client = client_of(controller, controller.token("wp-1", "u1", "wp"), proxy)
        create_task(client.run(), name="xds", owner=owner)
        try:
            await asyncio.wait_for(client.wait_synced(), 30)
            (policy,) = map(decode_http_authorization, proxy.values[HTTP_AUTHORIZATION_TYPE].values())
            assert (policy.key, policy.waypoints) == ("shop/p", ("shop/wp",))
            name = "shop/web.shop.svc.cluster.local:0"
            table = decode_route_table(proxy.values[ROUTE_TABLE_TYPE][name])
            assert [backend.weight for backend in table.rules[0].backends] == [1]
            assert "shop/web.shop.svc.cluster.local" in proxy.values[ADDRESS_TYPE]

            def weights() -> list[int]:
                now = decode_route_table(proxy.values[ROUTE_TABLE_TYPE][name])
                return [backend.weight for backend in now.rules[0].backends]

            (controller.state / "objects" / "route.yaml").write_text(ROUTE % 7)
            await eventually_async(lambda: weights() == [7], "the changed route")
            (controller.state / "objects" / "route.yaml").unlink()
            await eventually_async(lambda: proxy.values[ROUTE_TABLE_TYPE] == {}, "the removed route")
        finally:
            await owner.close()

    asyncio.run(main())


def test_a_waypoint_reads_how_endpoints_are_chosen(controller: Controller) -> None:
    async def main() -> None:
        proxy, owner = Proxy(), TaskOwner("test")
        client = client_of(controller, controller.token("wp-1", "u1", "wp"), proxy)
        create_task(client.run(), name="xds", owner=owner)
        try:
            await asyncio.wait_for(client.wait_synced(), 30)
            (policy,) = map(decode_destination_policy, proxy.values[DESTINATION_TYPE].values())
            assert policy.sources == ("DestinationRule/shop/web",)
            assert policy.policy.pool.max_requests == 7
            assert [subset.labels for subset in policy.subsets] == [(("version", "v2"),)]
            (labels,) = map(decode_endpoint_labels, proxy.values[ENDPOINT_LABELS_TYPE].values())
            assert labels.uid.endswith("Pod/shop/web-1")
            assert labels.labels == (("version", "v2"),)
            proxy.order.clear()
            (controller.state / "objects" / "more.yaml").write_text(SECURED)
            await eventually_async(
                lambda: "shop/db.shop.svc.cluster.local" in proxy.values[ADDRESS_TYPE], "db"
            )
            came = [type_url for type_url, _ in proxy.order]
            assert came.index(DESTINATION_TYPE) < came.index(ADDRESS_TYPE), "no request goes without it"

            proxy.order.clear()
            (controller.state / "objects" / "more.yaml").unlink()
            (controller.state / "objects" / "all.yaml").unlink()
            (controller.state / "objects" / "route.yaml").unlink()
            await eventually_async(lambda: not any(proxy.values[DESTINATION_TYPE]), "all is gone")
            withdrawn = [type_url for type_url, removed in proxy.order if removed]
            assert withdrawn.index(ROUTE_TABLE_TYPE) < withdrawn.index(DESTINATION_TYPE)
        finally:
            await owner.close()

    asyncio.run(main())


def test_another_pod_may_not_read_the_configuration(controller: Controller) -> None:
    async def main() -> None:
        proxy, owner = Proxy(), TaskOwner("test")
        # The same service account in another pod is no waypoint.
        client = client_of(controller, controller.token("web-1", "u2", "wp"), proxy)
        create_task(client.run(), name="xds", owner=owner)
        try:
            await eventually_async(lambda: "may not read" in client.status.last_error, "the refusal")
            assert not any(proxy.values.values())
        finally:
            await owner.close()

    asyncio.run(main())


def test_a_waypoint_gets_its_own_identity_and_no_other(controller: Controller) -> None:
    async def main() -> None:
        settings = CaSettings(
            address=f"https://localhost:{controller.port}",
            roots=controller.state / "ca" / "root-cert.pem",
            token=controller.token("wp-1", "u1", "wp"),
            impersonate=False,
        )
        own = SpiffeId("cluster.local", "shop", "wp")
        certificate = await CaClient(settings, SystemClock()).fetch(own)
        assert certificate.identity == own
        for impersonate in (True, False):
            asking = CaSettings(
                address=settings.address, roots=settings.roots, token=settings.token, impersonate=impersonate
            )
            with pytest.raises(CaError):
                await CaClient(asking, SystemClock()).fetch(SpiffeId("cluster.local", "shop", "web"))

    asyncio.run(main())
