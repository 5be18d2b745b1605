# SPDX-License-Identifier: Apache-2.0
"""Objects of an API server as snapshots: whole, and through every fault of the server."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from mesh.config.kube_api import AnswerError, UnreachableError
from mesh.config.kube_reflector import PAGE
from mesh.config.kube_store import Kind
from mesh.config.kubernetes import DEBOUNCE_S, KubernetesSource
from mesh.config.source import Snapshot
from tests.support.fake_kube import FakeKube
from tests.support.virtual import LoopClock, run_virtual

PODS, NAMESPACES = "/api/v1/pods", "/api/v1/namespaces"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
POLICIES = "/apis/security.istio.io/v1/authorizationpolicies"
POD = Kind(group="", versions=("v1",), kind="Pod", plural="pods")
NAMESPACE = Kind(group="", versions=("v1",), kind="Namespace", plural="namespaces")
POLICY = Kind(
    group="security.istio.io",
    versions=("v1", "v1beta1"),
    kind="AuthorizationPolicy",
    plural="authorizationpolicies",
    custom=True,
)


@asynccontextmanager
async def watching(api: FakeKube, *kinds: Kind) -> AsyncIterator[Callable[[], Awaitable[Snapshot]]]:
    source = KubernetesSource(api, kinds, clock=LoopClock(), chance=random.Random(7))
    watch = source.watch()

    async def next_snapshot() -> Snapshot:
        async with asyncio.timeout(7200):
            return await anext(watch)

    try:
        yield next_snapshot
    finally:
        await watch.aclose()  # type: ignore[attr-defined]


def names(snapshot: Snapshot) -> list[str]:
    return sorted(str(key) for key in snapshot.objects)


def test_the_first_snapshot_has_every_kind() -> None:
    async def test() -> None:
        api = FakeKube(PODS, NAMESPACES)
        api.put(PODS, "shop", "web", spec={"nodeName": "n1"})
        api.put(NAMESPACES, "", "shop")
        async with watching(api, POD, NAMESPACE) as following:
            snapshot = await following()
            assert names(snapshot) == ["Namespace shop", "Pod shop/web"]
            (pod,) = snapshot.of("Pod")
            assert (pod.api_version, pod.kind, pod.namespace, pod.file, pod.line) == (
                "v1",
                "Pod",
                "shop",
                "",
                0,
            )
            assert pod.spec == {"nodeName": "n1"}

    run_virtual(test)


def test_a_kind_that_may_not_be_listed_holds_the_first_snapshot_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        api = FakeKube(PODS, NAMESPACES)
        api.put(NAMESPACES, "", "shop")
        api.refuse[PODS] = AnswerError(403, "Forbidden", "pods is forbidden")
        async with watching(api, POD, NAMESPACE) as following:
            waiting = asyncio.ensure_future(following())  # noqa: TID251
            await asyncio.sleep(60)
            assert not waiting.done()
            del api.refuse[PODS]
            assert names(await waiting) == ["Namespace shop"]

    run_virtual(test)
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warning.startswith("Pod: 403 Forbidden: pods is forbidden; nothing was read yet")
    assert "needs the verbs list and watch on pods" in warning


def test_changes_close_together_come_in_one_snapshot() -> None:
    async def test() -> None:
        api = FakeKube(PODS)
        async with watching(api, POD) as following:
            assert names(await following()) == []
            await asyncio.sleep(1)
            api.put(PODS, "shop", "a")
            api.put(PODS, "shop", "b")
            assert names(await following()) == ["Pod shop/a", "Pod shop/b"]
            api.delete(PODS, "shop", "a")
            assert names(await following()) == ["Pod shop/b"]

    run_virtual(test)


def test_a_stream_of_changes_does_not_hold_snapshots_back() -> None:
    async def test() -> None:
        api = FakeKube(PODS)
        loop = asyncio.get_running_loop()
        async with watching(api, POD) as following:
            await following()
            await asyncio.sleep(1)

            async def write() -> None:
                for number in range(100):
                    api.put(PODS, "shop", "a", spec={"number": number})
                    await asyncio.sleep(DEBOUNCE_S / 4)

            writer = asyncio.ensure_future(write())  # noqa: TID251
            began_s = loop.time()
            await following()
            assert loop.time() - began_s <= 2 * DEBOUNCE_S
            await writer

    run_virtual(test)


def test_an_event_that_changes_nothing_makes_no_snapshot() -> None:
    async def test() -> None:
        api = FakeKube(PODS)
        api.put(PODS, "shop", "a", spec={"x": 1})
        async with watching(api, POD) as following:
            await following()
            await asyncio.sleep(1)
            api.put(PODS, "shop", "a", spec={"x": 1}, metadata={"managedFields": [{"manager": "kubelet"}]})
            api.bookmark()
            waiting = asyncio.ensure_future(following())  # noqa: TID251
            await asyncio.sleep(10)
            assert not waiting.done()
            api.put(PODS, "shop", "a", spec={"x": 2})
            (pod,) = (await waiting).of("Pod")
            assert pod.spec == {"x": 2}
            assert "managedFields" not in pod.metadata

    run_virtual(test)


def test_an_outage_loses_nothing_and_the_watch_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def test() -> None:
        api = FakeKube(PODS)
        api.put(PODS, "shop", "a")
        async with watching(api, POD) as following:
            await following()
            await asyncio.sleep(1)
            api.down = True
            api.end_watches(UnreachableError("connection reset"))
            waiting = asyncio.ensure_future(following())  # noqa: TID251
            await asyncio.sleep(300)
            assert not waiting.done()
            tries = len(api.requests)
            api.put(PODS, "shop", "b")
            api.down = False
            assert names(await waiting) == ["Pod shop/a", "Pod shop/b"]
            assert tries < 40  # Backed off.
            assert api.requests[-1] == ("WATCH", PODS)  # From where it was, without a list.

    run_virtual(test)
    told = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert told == ["Pod: connection reset; the 1 objects read before stay in force, retrying"]


def test_an_expired_version_is_listed_anew_at_once() -> None:
    async def test() -> None:
        api = FakeKube(PODS)
        api.put(PODS, "shop", "a")
        api.put(PODS, "shop", "b")
        loop = asyncio.get_running_loop()
        async with watching(api, POD) as following:
            await following()
            await asyncio.sleep(60)
            api.down = True
            api.end_watches(UnreachableError("connection reset"))
            await asyncio.sleep(1)
            api.delete(PODS, "shop", "a")
            api.put(PODS, "shop", "c")
            api.compact()
            api.down = False
            began_s = loop.time()
            assert names(await following()) == ["Pod shop/b", "Pod shop/c"]
            assert loop.time() - began_s < 5
            await asyncio.sleep(60)
            api.put(PODS, "shop", "d")
            assert names(await following()) == ["Pod shop/b", "Pod shop/c", "Pod shop/d"]

    run_virtual(test)


def test_versions_that_expire_again_and_again_are_not_listed_in_a_tight_loop() -> None:
    async def test() -> None:
        api = FakeKube(PODS)
        async with watching(api, POD) as following:
            await following()
            api.compacted = 10**9
            api.end_watches()
            waiting = asyncio.ensure_future(following())  # noqa: TID251
            before = len(api.requests)
            await asyncio.sleep(60)
            assert len(api.requests) - before < 30
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)

    run_virtual(test)


def test_bookmarks_carry_a_quiet_watch_over_a_compaction() -> None:
    async def test() -> None:
        api = FakeKube(PODS, NAMESPACES)
        async with watching(api, POD, NAMESPACE) as following:
            await following()
            await asyncio.sleep(1)
            for number in range(5):
                api.put(NAMESPACES, "", f"ns{number}")
            api.bookmark()
            await following()
            api.compacted = api.version
            api.end_watches()
            await asyncio.sleep(20)
            lists = [request for request in api.requests if request == ("GET", PODS)]
            assert len(lists) == 1

    run_virtual(test)


def test_long_lists_are_read_in_pages_and_anew_when_their_version_expires() -> None:
    async def test() -> None:
        api = FakeKube(PODS)
        for number in range(2 * PAGE + 1):
            api.put(PODS, "shop", f"pod-{number}")
        real = api._list
        calls = 0

        def once_expired(collection: str, namespace: str, query: dict[str, str]) -> dict[str, object]:
            nonlocal calls
            calls += 1
            if calls == 2:
                api.compact()
            return real(collection, namespace, query)

        api._list = once_expired  # type: ignore[method-assign]
        async with watching(api, POD) as following:
            assert len((await following()).objects) == 2 * PAGE + 1
            assert calls == 2 + 3

    run_virtual(test)


def test_field_selectors_are_the_servers_business() -> None:
    async def test() -> None:
        api = FakeKube(PODS)
        api.put(PODS, "shop", "here", spec={"nodeName": "n1"})
        api.put(PODS, "shop", "there", spec={"nodeName": "n2"})
        mine = Kind(group="", versions=("v1",), kind="Pod", plural="pods", field_selector="spec.nodeName=n1")
        async with watching(api, mine) as following:
            assert names(await following()) == ["Pod shop/here"]
            await asyncio.sleep(1)
            api.put(PODS, "shop", "there2", spec={"nodeName": "n2"})
            api.put(PODS, "shop", "here2", spec={"nodeName": "n1"})
            assert names(await following()) == ["Pod shop/here", "Pod shop/here2"]

    run_virtual(test)


def test_a_kind_without_definition_is_skipped_by_name_and_followed_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)

    async def test() -> None:
        api = FakeKube(PODS, CRDS)
        api.put(PODS, "shop", "a")
        async with watching(api, POD, POLICY) as following:
            assert names(await following()) == ["Pod shop/a"]
            quiet = len(api.requests)
            await asyncio.sleep(600)
            assert len([r for r in api.requests[quiet:] if "security" in r[1]]) == 0
            # The definition comes first, what it defines is served a moment later.
            api.put(CRDS, "", "authorizationpolicies.security.istio.io")
            await asyncio.sleep(3)
            api.collections.add(POLICIES)
            api.put(POLICIES, "shop", "allow", spec={})
            assert names(await following()) == ["AuthorizationPolicy shop/allow", "Pod shop/a"]
            # Removed: the definition, and what it defined.
            api.collections.discard(POLICIES)
            api.delete(CRDS, "", "authorizationpolicies.security.istio.io")
            api.end_watches()
            assert names(await following()) == ["Pod shop/a"]

    run_virtual(test)
    told = [r.getMessage() for r in caplog.records]
    skipped = "AuthorizationPolicy (security.istio.io) is not installed; its objects are followed once it is"
    assert told.count(skipped) == 2
    assert "AuthorizationPolicy (security.istio.io) is installed now; 1 objects" in told


def test_an_older_version_is_taken_where_the_newer_is_not_served() -> None:
    async def test() -> None:
        old = "/apis/security.istio.io/v1beta1/authorizationpolicies"
        api = FakeKube(CRDS, old)
        api.put(CRDS, "", "authorizationpolicies.security.istio.io")
        api.put(old, "shop", "allow", spec={})
        async with watching(api, POLICY) as following:
            (policy,) = (await following()).of("AuthorizationPolicy")
            assert policy.api_version == "security.istio.io/v1beta1"

    run_virtual(test)


def test_a_404_while_the_definition_is_there_drops_no_policy() -> None:
    async def test() -> None:
        api = FakeKube(CRDS, POLICIES)
        api.put(CRDS, "", "authorizationpolicies.security.istio.io")
        api.put(POLICIES, "shop", "deny", spec={})
        async with watching(api, POLICY) as following:
            await following()
            await asyncio.sleep(1)
            api.collections.discard(POLICIES)  # A server that starts.
            api.end_watches()
            waiting = asyncio.ensure_future(following())  # noqa: TID251
            await asyncio.sleep(30)
            assert not waiting.done()
            api.collections.add(POLICIES)
            api.put(POLICIES, "shop", "deny2", spec={})
            assert len((await waiting).objects) == 2

    run_virtual(test)


def test_an_object_that_cannot_be_read_is_refused_alone() -> None:
    async def test() -> None:
        api = FakeKube(PODS)
        api.put(PODS, "shop", "a", spec={"x": 1})
        api.put(PODS, "shop", "b", spec="no mapping")
        async with watching(api, POD) as following:
            snapshot = await following()
            assert names(snapshot) == ["Pod shop/a"]
            (rejection,) = snapshot.rejections
            assert str(rejection) == "Pod shop/b: Pod b: spec must be a mapping"
            await asyncio.sleep(1)
            api.put(PODS, "shop", "a", spec="bad")
            snapshot = await following()
            (pod,) = snapshot.of("Pod")
            assert pod.spec == {"x": 1}  # The last good version stays.
            assert len(snapshot.rejections) == 2

    run_virtual(test)


def test_an_event_that_is_none_leads_to_a_list() -> None:
    async def test() -> None:
        api = FakeKube(PODS)
        async with watching(api, POD) as following:
            await following()
            await asyncio.sleep(1)
            api.watches[0].queue.put_nowait({"type": "NONSENSE", "object": {}})
            await asyncio.sleep(5)
            api.put(PODS, "shop", "a")
            assert names(await following()) == ["Pod shop/a"]

    run_virtual(test)


def test_a_bug_ends_the_watch() -> None:
    async def test() -> None:
        api = FakeKube(PODS)

        def broken(collection: str, namespace: str, query: dict[str, str]) -> dict[str, object]:
            raise ZeroDivisionError

        api._list = broken  # type: ignore[method-assign]
        async with watching(api, POD) as following:
            with pytest.raises(ZeroDivisionError):
                await following()

    run_virtual(test)


def test_it_says_for_how_long_a_kind_is_not_followed() -> None:
    async def test() -> None:
        api = FakeKube(PODS)
        source = KubernetesSource(api, [POD], clock=LoopClock(), chance=random.Random(7))
        watch = source.watch()
        await anext(watch)
        assert source.describe()[0]["failingSeconds"] == 0
        await asyncio.sleep(1)
        api.down = True
        api.end_watches(UnreachableError("connection reset"))
        await asyncio.sleep(100)
        (row,) = source.describe()
        assert 99 < row["failingSeconds"] <= 100
        assert row["failure"] == "https://fake does not answer: refused"
        api.down = False
        await asyncio.sleep(60)
        api.bookmark()
        await asyncio.sleep(1)
        assert source.describe()[0]["failingSeconds"] == 0
        await watch.aclose()  # type: ignore[attr-defined]

    run_virtual(test)


def test_it_says_how_each_kind_is_followed() -> None:
    async def test() -> None:
        api = FakeKube(PODS, CRDS)
        api.put(PODS, "shop", "a")
        source = KubernetesSource(api, [POD, POLICY], clock=LoopClock(), chance=random.Random(7))
        watch = source.watch()
        await anext(watch)
        rows = {row["kind"]: (row["state"], row["objects"], row["failure"]) for row in source.describe()}
        assert rows == {
            "CustomResourceDefinition (apiextensions.k8s.io)": ("followed", 0, ""),
            "Pod": ("followed", 1, ""),
            "AuthorizationPolicy (security.istio.io)": ("not installed", 0, ""),
        }
        await watch.aclose()  # type: ignore[attr-defined]
        assert api.watches == []

    run_virtual(test)
