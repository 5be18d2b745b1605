# SPDX-License-Identifier: Apache-2.0
"""Writing through conflicts, refusals and lag; never over what is somebody else's."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from controller.kubernetes.writer import RESYNC_S, Writer
from controller.translate.gateway import Status
from mesh.config.kube_api import AnswerError
from mesh.config.kube_store import Kind
from mesh.config.kubernetes import KubernetesSource
from tests.support.fake_kube import FakeKube
from tests.support.virtual import LoopClock, run_virtual

NAMESPACES, MAPS, DEPLOYMENTS = "/api/v1/namespaces", "/api/v1/configmaps", "/apis/apps/v1/deployments"
GATEWAYS = "/apis/gateway.networking.k8s.io/v1/gateways"
KINDS = (
    Kind(group="", versions=("v1",), kind="Namespace", plural="namespaces"),
    Kind(group="", versions=("v1",), kind="ConfigMap", plural="configmaps"),
    Kind(group="gateway.networking.k8s.io", versions=("v1",), kind="Gateway", plural="gateways"),
)
ROOT = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "istio-ca-root-cert", "namespace": "shop"},
    "data": {"root-cert.pem": "PEM"},
}
DEPLOYMENT: dict[str, Any] = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "wp", "namespace": "shop", "labels": {"gateway.istio.io/managed": "x"}},
    "spec": {"template": {}},
}
READY = {"conditions": [{"type": "Programmed", "status": "True", "reason": "x", "message": ""}]}


class Leader:
    """`Leadership` that a test sets."""

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.event.set()

    @property
    def leading(self) -> bool:
        return self.event.is_set()

    async def gained(self) -> None:
        await self.event.wait()


class Bed:
    """A writer whose wishes are made anew from each snapshot, as the app does."""

    def __init__(self, api: FakeKube) -> None:
        self.api = api
        self.leader = Leader()
        self.writer = Writer(api, self.leader, LoopClock(), random.Random(3))  # type: ignore[arg-type]
        self.objects: list[dict[str, Any]] = [ROOT]
        self.gateway_status: dict[str, Any] | None = None

    async def follow(self) -> None:
        async for snapshot in KubernetesSource(self.api, KINDS, clock=LoopClock()).watch():
            self.writer.with_statuses(snapshot.objects)
            statuses = []
            if self.gateway_status is not None:
                statuses = [Status(obj=item, status=self.gateway_status) for item in snapshot.of("Gateway")]
            self.writer.write(self.objects, statuses, 0.0)

    @property
    def writes(self) -> list[str]:
        return [path for method, path in self.api.requests if method in ("POST", "PUT", "PATCH")]


@asynccontextmanager
async def running(api: FakeKube, *, leading: bool = True) -> AsyncIterator[Bed]:
    bed = Bed(api)
    if not leading:
        bed.leader.event.clear()
    tasks = [asyncio.ensure_future(work) for work in (bed.follow(), bed.writer.run())]  # noqa: TID251
    try:
        yield bed
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


def cluster() -> FakeKube:
    api = FakeKube(NAMESPACES, MAPS, DEPLOYMENTS, GATEWAYS)
    api.put(NAMESPACES, "", "shop")
    return api


def test_the_root_certificate_is_written_once_and_again_when_it_is_undone() -> None:
    async def test() -> None:
        api = cluster()
        async with running(api) as bed:
            await asyncio.sleep(300)
            assert len(bed.writes) == 1
            assert api.get(MAPS, "shop", "istio-ca-root-cert")["data"] == {"root-cert.pem": "PEM"}
            api.put(MAPS, "shop", "istio-ca-root-cert", data={"root-cert.pem": "FORGED"})
            await asyncio.sleep(5)
            assert api.get(MAPS, "shop", "istio-ca-root-cert")["data"] == {"root-cert.pem": "PEM"}
            api.delete(MAPS, "shop", "istio-ca-root-cert")
            await asyncio.sleep(RESYNC_S + 5)
            assert api.get(MAPS, "shop", "istio-ca-root-cert")["data"] == {"root-cert.pem": "PEM"}
            assert len(bed.writes) == 3

    run_virtual(test)


def test_only_the_leader_writes_and_a_new_one_writes_what_is_missing() -> None:
    async def test() -> None:
        api = cluster()
        async with running(api, leading=False) as bed:
            await asyncio.sleep(120)
            assert bed.writes == []
            bed.leader.event.set()
            await asyncio.sleep(1)
            assert len(bed.writes) == 1

    run_virtual(test)


def test_what_somebody_else_made_is_left_alone_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        api = cluster()
        api.put(DEPLOYMENTS, "shop", "wp", spec={"theirs": True})
        async with running(api) as bed:
            bed.objects = [DEPLOYMENT]
            await asyncio.sleep(300)
            assert api.get(DEPLOYMENTS, "shop", "wp")["spec"] == {"theirs": True}
            assert all("deployments" not in path for path in bed.writes)

    run_virtual(test)
    told = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert told == ["Deployment shop/wp cannot be written: exists and is not of this Gateway; rename one"]


def test_our_own_that_is_not_followed_yet_is_applied() -> None:
    async def test() -> None:
        api = cluster()
        labels = {"gateway.istio.io/managed": "x"}
        api.put(DEPLOYMENTS, "shop", "wp", metadata={"labels": labels}, spec={"replicas": 3})
        async with running(api) as bed:
            bed.objects = [DEPLOYMENT]
            await asyncio.sleep(5)
            assert api.get(DEPLOYMENTS, "shop", "wp")["spec"] == {"replicas": 3, "template": {}}

    run_virtual(test)


def test_a_status_is_written_once_and_after_a_conflict_from_the_newer_version() -> None:
    async def test() -> None:
        api = cluster()
        api.put(GATEWAYS, "shop", "wp", apiVersion="gateway.networking.k8s.io/v1", spec={"listeners": []})
        async with running(api) as bed:
            bed.objects, bed.gateway_status = [], READY
            real = api._change
            conflicts = 0

            def change(*arguments: Any) -> dict[str, Any]:
                nonlocal conflicts
                if conflicts == 0:
                    conflicts += 1
                    api.put(
                        GATEWAYS,
                        "shop",
                        "wp",
                        apiVersion="gateway.networking.k8s.io/v1",
                        spec={"listeners": ["changed"]},
                    )
                return real(*arguments)

            api._change = change  # type: ignore[method-assign]
            await asyncio.sleep(300)
            gateway = api.get(GATEWAYS, "shop", "wp")
            assert gateway["spec"] == {"listeners": ["changed"]}
            (condition,) = gateway["status"]["conditions"]
            assert condition["status"] == "True"
            assert condition["lastTransitionTime"]
            assert bed.writes == ["/apis/gateway.networking.k8s.io/v1/namespaces/shop/gateways/wp/status"] * 2

    run_virtual(test)


def test_a_refusal_is_told_once_tried_again_and_holds_nothing_else_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        api = cluster()
        api.refuse[DEPLOYMENTS] = AnswerError(403, "Forbidden", "deployments is forbidden")
        async with running(api) as bed:
            bed.objects = [DEPLOYMENT, ROOT]
            await asyncio.sleep(120)
            assert api.get(MAPS, "shop", "istio-ca-root-cert")["data"]
            del api.refuse[DEPLOYMENTS]
            await asyncio.sleep(60)
            assert api.get(DEPLOYMENTS, "shop", "wp")["spec"] == {"template": {}}
            assert len(api.requests) < 60

    run_virtual(test)
    (told,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert told.startswith(
        "Deployment shop/wp cannot be written: 403 Forbidden: deployments is forbidden; give"
    )


def test_an_outage_is_written_through_afterwards() -> None:
    async def test() -> None:
        api = cluster()
        async with running(api) as bed:
            await asyncio.sleep(5)
            api.down = True
            bed.objects = [{**ROOT, "data": {"root-cert.pem": "NEW"}}]
            bed.writer.write(bed.objects, [], 0.0)
            await asyncio.sleep(100)
            api.down = False
            await asyncio.sleep(60)
            assert api.get(MAPS, "shop", "istio-ca-root-cert")["data"] == {"root-cert.pem": "NEW"}

    run_virtual(test)
