# SPDX-License-Identifier: Apache-2.0
"""KubernetesSource on a real API server: what kubectl does arrives, through restarts and compactions."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import yaml

from mesh.config.kube_api import AnswerError
from mesh.config.kube_client import KubeClient
from mesh.config.kube_store import Kind
from mesh.config.kubernetes import KubernetesSource
from mesh.config.source import Snapshot
from tests.kube_api.conftest import definitions
from tests.kube_api.control_plane import ControlPlane

CONFIG_MAP = Kind(
    group="", versions=("v1",), kind="ConfigMap", plural="configmaps", label_selector="of=test-source"
)
POLICY = Kind(
    group="security.istio.io",
    versions=("v1", "v1beta1"),
    kind="PeerAuthentication",
    plural="peerauthentications",
    custom=True,
)
TIMEOUT_S = 90.0


class Followed:
    """The newest snapshot of a source, and waiting for one."""

    def __init__(self) -> None:
        self.snapshots: list[Snapshot] = []
        self._changed = asyncio.Event()

    async def follow(self, source: KubernetesSource) -> None:
        async for snapshot in source.watch():
            self.snapshots.append(snapshot)
            self._changed.set()

    async def until(self, condition: Callable[[Snapshot], bool]) -> Snapshot:
        async with asyncio.timeout(TIMEOUT_S):
            while not self.snapshots or not condition(self.snapshots[-1]):
                self._changed.clear()
                await self._changed.wait()
        return self.snapshots[-1]

    async def until_names(self, *names: str) -> Snapshot:
        return await self.until(lambda snapshot: {key.name for key in snapshot.objects} == set(names))


@asynccontextmanager
async def following(kubeconfig: Path, *kinds: Kind) -> AsyncIterator[Followed]:
    client = await KubeClient.open(kubeconfig, user_agent="test")
    followed = Followed()
    task = asyncio.ensure_future(followed.follow(KubernetesSource(client, kinds)))  # noqa: TID251
    try:
        yield followed
        assert not task.done(), task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await client.close()


def config_map(name: str, **data: str) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"namespace": "default", "name": name, "labels": {"of": "test-source"}},
        "data": data,
    }


@pytest.fixture
def plane(control_plane: ControlPlane) -> ControlPlane:
    control_plane.kubectl("-n", "default", "delete", "configmap", "-l", "of=test-source")
    return control_plane


async def do(work: Callable[[], object]) -> None:
    """Do what blocks beside the loop."""
    await asyncio.to_thread(work)


async def test_what_kubectl_applies_changes_and_deletes_arrives(plane: ControlPlane) -> None:
    plane.apply(config_map("a", key="1"))
    async with following(plane.kubeconfig, CONFIG_MAP) as followed:
        snapshot = await followed.until_names("a")
        (found,) = snapshot.of("ConfigMap")
        assert (found.api_version, found.namespace, found.data["data"]) == ("v1", "default", {"key": "1"})
        assert "managedFields" not in found.metadata
        await do(lambda: plane.apply(config_map("b"), config_map("a", key="2")))
        await followed.until_names("a", "b")
        await followed.until(lambda s: any(o.data.get("data") == {"key": "2"} for o in s.objects.values()))
        await do(lambda: plane.kubectl("-n", "default", "delete", "configmap", "a"))
        await followed.until_names("b")


async def test_lists_longer_than_a_page_are_whole(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mesh.config.kube_reflector.PAGE", 3)
    names = [f"item-{number}" for number in range(10)]
    plane.apply(*(config_map(name) for name in names))
    async with following(plane.kubeconfig, CONFIG_MAP) as followed:
        await followed.until(lambda _: True)
        assert sorted(key.name for key in followed.snapshots[0].objects) == names


async def test_a_watch_survives_the_restart_of_the_api_server(plane: ControlPlane) -> None:
    plane.apply(config_map("before"))
    async with following(plane.kubeconfig, CONFIG_MAP) as followed:
        await followed.until_names("before")
        await do(plane.kill_apiserver)
        await do(plane.start_apiserver)
        await do(lambda: plane.apply(config_map("after")))
        await followed.until_names("before", "after")
        assert all(len(snapshot.objects) >= 1 for snapshot in followed.snapshots), "objects were lost"


class Link:
    """A server in between that can be cut; TLS goes through it."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.open = True
        self.port = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        if not self.open:
            writer.transport.abort()
            return
        with contextlib.suppress(OSError):
            other_reader, other_writer = await asyncio.open_connection("127.0.0.1", self._to)
            self._writers.add(other_writer)
            await asyncio.gather(self._pump(reader, other_writer), self._pump(other_reader, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.transport.abort()

    def cut(self) -> None:
        self.open = False
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def stop(self) -> None:
        self.cut()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()


async def test_a_version_that_was_compacted_away_is_listed_anew(
    plane: ControlPlane, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    plane.apply(config_map("kept"), config_map("deleted"))
    link = Link(plane.api_port)
    await link.start()
    kubeconfig = plane.kubeconfig_of("", "link", port=link.port)
    async with following(kubeconfig, CONFIG_MAP) as followed:
        await followed.until_names("kept", "deleted")
        link.cut()
        await do(lambda: plane.kubectl("-n", "default", "delete", "configmap", "deleted"))
        await do(lambda: plane.apply(config_map("new")))
        await do(plane.compact)
        # An API server that starts knows no version before those of now.
        await do(plane.kill_apiserver)
        await do(plane.start_apiserver)
        assert {key.name for key in followed.snapshots[-1].objects} == {"kept", "deleted"}, (
            "stale is not lost"
        )
        link.open = True
        await followed.until_names("kept", "new")
    await link.stop()
    assert any("410" in r.getMessage() and "listing anew" in r.getMessage() for r in caplog.records)


async def test_a_kind_is_followed_from_when_its_definition_is_installed(plane: ControlPlane) -> None:
    name = "peerauthentications.security.istio.io"
    plane.kubectl("delete", "customresourcedefinition", name, "--ignore-not-found")
    plane.apply(config_map("a"))
    policy = {
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": {"namespace": "default", "name": "strict"},
        "spec": {"mtls": {"mode": "STRICT"}},
    }
    async with following(plane.kubeconfig, CONFIG_MAP, POLICY) as followed:
        await followed.until_names("a")
        await do(lambda: plane.apply(*definitions(name)))
        await do(lambda: plane.kubectl("wait", "--for=condition=Established", "crd", name, "--timeout=60s"))
        await do(lambda: plane.apply(policy))
        snapshot = await followed.until_names("a", "strict")
        (found,) = snapshot.of("PeerAuthentication")
        assert str(found.key) == "PeerAuthentication default/strict"
        assert found.spec == {"mtls": {"mode": "STRICT"}}
        await do(lambda: plane.kubectl("delete", "crd", name, "--timeout=60s"))
        await followed.until_names("a")


async def test_refusals_of_a_real_server_are_told_apart(plane: ControlPlane) -> None:
    client = await KubeClient.open(plane.kubeconfig, user_agent="test")
    try:
        with pytest.raises(AnswerError, match="404 NotFound") as missing:
            await client.call("GET", "/api/v1/namespaces/default/configmaps/none")
        assert missing.value.status == 404
        path = "/api/v1/namespaces/default/configmaps"
        body = config_map("twice")
        await client.call("POST", path, body=body)
        with pytest.raises(AnswerError, match="409 AlreadyExists"):
            await client.call("POST", path, body=body)
    finally:
        await client.close()


async def test_a_token_that_is_none_is_refused_by_name(plane: ControlPlane) -> None:
    client = await KubeClient.open(plane.kubeconfig_of("nonsense", "nonsense"), user_agent="test")
    try:
        with pytest.raises(AnswerError, match="401 Unauthorized"):
            await client.call("GET", "/api/v1/namespaces")
    finally:
        await client.close()


async def test_a_token_file_that_is_renewed_is_read_again(plane: ControlPlane) -> None:
    path = plane.kubeconfig_of("nonsense", "rotating")
    config = yaml.safe_load(path.read_text())
    token_file = plane.directory / "rotating.token"
    config["users"][0]["user"] = {"tokenFile": str(token_file)}
    path.write_text(yaml.dump(config))
    token_file.write_text("expired")
    client = await KubeClient.open(path, user_agent="test")
    try:
        with pytest.raises(AnswerError, match="401 Unauthorized"):
            await client.call("GET", "/api/v1/namespaces/default/configmaps/none")
        token_file.write_text(plane.token("istio-system", "ztunnel"))
        assert (await client.call("GET", "/api/v1/namespaces"))["kind"] == "NamespaceList"
    finally:
        await client.close()
