# SPDX-License-Identifier: Apache-2.0
"""From objects and CNI calls to workers, with steps that only take notes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from daemonset import pods
from daemonset.cni import CniRequest
from daemonset.codes import Code
from daemonset.enroll import GENTLE_ORDER, NetnsReplaced, Step
from daemonset.recovery import Takeover
from daemonset.registry import Objects, Registry
from daemonset.store import Remembered
from daemonset.worker import StepError, Subject
from mesh.runtime.clock import SystemClock
from tests.support.eventually import eventually_async


class Notes:
    """Steps that note what was asked; `fail` and `hold` by step."""

    def __init__(self) -> None:
        self.done: list[tuple[str, Step]] = []
        self.fail: dict[Step, StepError] = {}
        self.hold: dict[Step, asyncio.Event] = {}

    async def do(self, step: Step, subject: Subject) -> NetnsReplaced | None:
        self.done.append((subject.pod.uid, step))
        if step in self.hold:
            await self.hold[step].wait()
        if step in self.fail:
            raise self.fail[step]
        return None

    def of(self, uid: str) -> list[Step]:
        return [step for who, step in self.done if who == uid]


class Setting:
    """A registry with one ztunnel session and a set of uids whose processes run."""

    def __init__(self) -> None:
        self.steps = Notes()
        self.running: set[str] = set()
        self.cookies: dict[str, int] = {}
        self.registry = Registry(
            node="n1",
            steps=self.steps,
            clock=SystemClock(),
            processes=lambda uid: uid in self.running,
            cookie_of=self.cookies.get,
            excluded_namespaces=frozenset({"kube-system"}),
            cni_timeout_s=0.2,
        )


def run(scenario: Callable[[Setting], Coroutine[Any, Any, None]]) -> None:
    async def body() -> None:
        setting = Setting()
        try:
            async with asyncio.timeout(10):
                await scenario(setting)
        finally:
            await setting.registry.close()

    asyncio.run(body())


def pod(uid: str = "u1", *, ip: str | None = "10.1.0.5", **metadata: Any) -> dict[str, Any]:
    status = {"phase": "Running", "podIP": ip} if ip else {"phase": "Pending"}
    return {
        "metadata": {"name": f"web-{uid}", "namespace": "shop", "uid": uid, **metadata},
        "spec": {"nodeName": "n1"},
        "status": status,
    }


def objects(*values: dict[str, Any], mode: str | None = "ambient") -> Objects:
    labels = {} if mode is None else {pods.MODE_LABEL: mode}
    return Objects(pods=values, namespaces={"shop": labels})


def request(command: str = "ADD", uid: str = "u1", name: str = "web-u1") -> CniRequest:
    return CniRequest(
        command=command,
        uid=uid,
        namespace="shop",
        name=name,
        netns="/run/netns/x",
        addresses=(ip_address("10.1.0.5"),),
    )


def enrolled(setting: Setting, uid: str = "u1") -> bool:
    return any(w.uid == uid and w.state.enrolled for w in setting.registry.workers)


def test_a_labelled_running_pod_is_enrolled_gently() -> None:
    async def scenario(s: Setting) -> None:
        s.registry.on_session(1)
        s.registry.apply(objects(pod()))
        await eventually_async(lambda: enrolled(s))
        assert s.steps.of("u1") == list(GENTLE_ORDER)

    run(scenario)


def test_a_label_flip_releases_and_enrols_again() -> None:
    async def scenario(s: Setting) -> None:
        s.registry.on_session(1)
        s.registry.apply(objects(pod()))
        await eventually_async(lambda: enrolled(s))
        s.registry.apply(objects(pod(labels={pods.MODE_LABEL: "none"})))
        await eventually_async(lambda: not s.registry.workers)
        assert Step.GRACE in s.steps.of("u1")
        assert [i.code for i in s.registry.ignored] == [Code.OPTED_OUT]
        s.registry.apply(objects(pod()))
        await eventually_async(lambda: enrolled(s))
        assert not s.registry.ignored

    run(scenario)


def test_applying_the_same_objects_again_does_nothing() -> None:
    async def scenario(s: Setting) -> None:
        s.registry.on_session(1)
        for _ in range(3):
            s.registry.apply(objects(pod()))
            await eventually_async(lambda: enrolled(s))
        assert s.steps.of("u1") == list(GENTLE_ORDER)

    run(scenario)


def test_a_pod_without_object_stays_captured_while_its_processes_run() -> None:
    async def scenario(s: Setting) -> None:
        s.running.add("u1")
        s.registry.on_session(1)
        s.registry.apply(objects(pod()))
        await eventually_async(lambda: enrolled(s))
        s.registry.apply(objects())
        await asyncio.sleep(0)
        assert enrolled(s)
        s.running.clear()
        s.registry.apply(objects())
        await eventually_async(lambda: not s.registry.workers)
        assert Step.GRACE not in s.steps.of("u1")

    run(scenario)


def test_a_pod_that_loses_its_address_in_the_object_stays() -> None:
    async def scenario(s: Setting) -> None:
        s.registry.on_session(1)
        s.registry.apply(objects(pod()))
        await eventually_async(lambda: enrolled(s))
        s.registry.apply(objects(pod(ip=None)))
        await asyncio.sleep(0)
        assert s.registry.workers[0].state.wanted

    run(scenario)


def test_a_pod_stays_while_the_object_of_its_namespace_is_missing() -> None:
    async def scenario(s: Setting) -> None:
        s.registry.on_session(1)
        s.registry.apply(objects(pod()))
        await eventually_async(lambda: enrolled(s))
        s.registry.apply(Objects(pods=(pod(),), namespaces={}))
        await asyncio.sleep(0)
        assert enrolled(s)
        # Its own label still counts, and so does a namespace that is there and says nothing.
        s.registry.apply(Objects(pods=(pod(labels={pods.MODE_LABEL: "none"}),), namespaces={}))
        await eventually_async(lambda: not s.registry.workers)
        s.registry.apply(objects(pod()))
        await eventually_async(lambda: enrolled(s))
        s.registry.apply(objects(pod(), mode=None))
        await eventually_async(lambda: not s.registry.workers)

    run(scenario)


def test_a_pod_that_begins_to_run_is_looked_at_again_without_a_gap() -> None:
    async def scenario(s: Setting) -> None:
        s.registry.on_session(1)
        s.registry.apply(objects(pod(ip=None)))
        assert (await s.registry.add(request())).result == "enrolled"
        s.steps.done.clear()
        s.registry.apply(objects(pod()))
        assert s.registry.workers[0].state.captured
        await eventually_async(lambda: enrolled(s))
        assert s.steps.of("u1") == [Step.PROVE, Step.CAPTURE_OUT, Step.PUBLISH]

    run(scenario)


def test_a_malformed_version_of_a_pod_changes_nothing() -> None:
    async def scenario(s: Setting) -> None:
        s.registry.on_session(1)
        s.registry.apply(objects(pod()))
        await eventually_async(lambda: enrolled(s))
        s.registry.apply(objects(pod(labels=["none"])))
        await asyncio.sleep(0)
        assert enrolled(s)

    run(scenario)


def test_cni_add_waits_for_the_object_and_captures_first() -> None:
    async def scenario(s: Setting) -> None:
        s.registry.on_session(1)
        adding = asyncio.get_running_loop().create_task(s.registry.add(request()))
        await asyncio.sleep(0)
        s.registry.apply(objects(pod(ip=None)))
        answer = await adding
        assert (answer.result, answer.reason) == ("enrolled", "")
        steps = s.steps.of("u1")
        assert steps.index(Step.CAPTURE_OUT) < steps.index(Step.OFFER)
        assert s.registry.workers[0].subject.addresses == (ip_address("10.1.0.5"),)

    run(scenario)


def test_cni_add_does_not_wait_for_who_tells_the_controller() -> None:
    async def scenario(s: Setting) -> None:
        s.registry.on_session(1)
        s.steps.fail[Step.PUBLISH] = StepError(Code.PUBLISH_FAILED, "the API server does not answer")
        s.registry.apply(objects(pod(ip=None)))
        assert (await s.registry.add(request())).result == "enrolled"
        (worker,) = s.registry.workers
        assert worker.state.served
        await worker.wait_until(lambda state: state.failure is not None)
        assert not worker.state.enrolled

    run(scenario)


def test_a_pod_whose_label_comes_after_its_sandbox_is_enrolled_where_the_cni_said() -> None:
    async def scenario(s: Setting) -> None:
        s.registry.on_session(1)
        s.registry.apply(objects(pod(ip=None), mode=None))
        await s.registry.delete(request("DEL"))
        assert (await s.registry.add(request())).result == "ignored"
        s.registry.apply(objects(pod(ip=None)))
        assert not s.registry.workers  # It has no address yet.
        s.registry.apply(objects(pod()))
        await eventually_async(lambda: enrolled(s))
        assert s.registry.workers[0].subject.cni_netns == "/run/netns/x"

    run(scenario)


def test_cni_add_of_a_pod_that_is_enrolled_proves_its_namespace_again() -> None:
    async def scenario(s: Setting) -> None:
        s.registry.on_session(1)
        s.registry.apply(objects(pod()))
        assert (await s.registry.add(request())).result == "enrolled"
        s.steps.done.clear()
        assert (await s.registry.add(request())).result == "enrolled"
        assert Step.PROVE in s.steps.of("u1")

    run(scenario)


def test_cni_add_without_ztunnel_is_an_error_and_the_pod_is_captured() -> None:
    async def scenario(s: Setting) -> None:
        s.registry.apply(objects(pod(ip=None)))
        answer = await s.registry.add(request())
        assert answer.code is Code.CNI_TIMEOUT
        assert "waits for ztunnel" in answer.reason
        assert s.registry.workers[0].state.captured

    run(scenario)


def test_cni_add_names_a_failed_proof_without_waiting_for_the_deadline() -> None:
    async def scenario(s: Setting) -> None:
        s.registry.on_session(1)
        s.registry._cni_timeout_s = 60.0
        s.steps.fail[Step.PROVE] = StepError(Code.ADDRESS_NOT_OWNED, "has not 10.1.0.5")
        s.registry.apply(objects(pod(ip=None)))
        answer = await s.registry.add(request())
        assert (answer.result, answer.code) == ("error", Code.ADDRESS_NOT_OWNED)

    run(scenario)


def test_cni_answers_for_pods_that_are_left_alone_or_unknown() -> None:
    async def scenario(s: Setting) -> None:
        unknown = await s.registry.add(request())
        assert unknown.code is Code.CNI_UNKNOWN_POD
        s.registry.apply(objects(pod(), mode=None))
        ignored = await s.registry.add(request())
        assert (ignored.result, ignored.code) == ("ignored", Code.NOT_LABELLED)
        mismatch = await s.registry.add(request(name="other"))
        assert mismatch.code is Code.CNI_BAD_REQUEST
        assert (await s.registry.check(request())).code is Code.NOT_LABELLED
        assert (await s.registry.check(request(uid="u9"))).code is Code.CNI_UNKNOWN_POD

    run(scenario)


def test_the_nodes_own_pods_start_without_their_objects() -> None:
    async def scenario(s: Setting) -> None:
        static = await s.registry.add(request(uid="0123456789abcdef" * 2))
        assert (static.result, static.code) == ("ignored", Code.STATIC_POD)
        system = await s.registry.add(replace(request(), namespace="kube-system"))
        assert (system.result, system.code) == ("ignored", Code.EXCLUDED_NAMESPACE)
        assert "pod kube-system/web-u1 is in the excluded namespace" in system.reason

    run(scenario)


def test_cni_del_removes_everything_and_the_object_alone_does_not_bring_it_back() -> None:
    async def scenario(s: Setting) -> None:
        s.registry.on_session(1)
        s.registry.apply(objects(pod()))
        assert (await s.registry.add(request())).result == "enrolled"
        assert (await s.registry.check(request())).result == "enrolled"
        assert (await s.registry.delete(request("DEL"))).result == "removed"
        assert (await s.registry.delete(request("DEL"))).result == "removed"
        assert Step.GRACE not in s.steps.of("u1")
        s.registry.apply(objects(pod()))
        assert not s.registry.workers
        # The kubelet makes a new sandbox for the same pod.
        assert (await s.registry.add(request())).result == "enrolled"

    run(scenario)


@pytest.mark.parametrize(
    ("path", "cookie", "running", "released"),
    [
        ("/run/netns/x", 7, True, True),
        ("/run/netns/x", 8, True, False),
        ("/run/netns/x", 8, False, False),
        ("/run/netns/x", None, True, False),
        ("/run/netns/x", None, False, True),
        ("", None, True, False),
        ("", None, False, True),
    ],
)
def test_a_late_del_of_an_earlier_sandbox_does_not_release_the_pod(
    path: str, cookie: int | None, running: bool, released: bool
) -> None:
    async def scenario(s: Setting) -> None:
        s.registry.on_session(1)
        s.registry.take_over([takeover()])
        s.registry.apply(objects(pod()))
        await eventually_async(lambda: enrolled(s))
        if cookie is not None:
            s.cookies[path] = cookie
        if running:
            s.running.add("u1")
        late = replace(request("DEL"), netns=path)
        assert (await s.registry.delete(late)).result == "removed"
        assert enrolled(s) is not released

    run(scenario)


def test_sessions_reach_every_pod_and_snapshots_hold_what_was_offered() -> None:
    async def scenario(s: Setting) -> None:
        s.registry.apply(objects(pod("u1"), pod("u2", ip="10.1.0.6")))
        await eventually_async(lambda: len(s.steps.done) == 4)
        assert not s.registry.offers()
        s.registry.on_session(1)
        await eventually_async(lambda: enrolled(s, "u1") and enrolled(s, "u2"))
        assert set(s.registry.offers()) == {"u1", "u2"}
        s.registry.on_session(0)
        assert not enrolled(s)
        s.registry.on_session(2)
        await eventually_async(lambda: enrolled(s, "u1") and enrolled(s, "u2"))

    run(scenario)


def takeover(uid: str = "u1", *, captured: bool = True) -> Takeover:
    remembered = Remembered(
        uid=uid,
        namespace="shop",
        name=f"web-{uid}",
        service_account="web",
        netns_path="/run/netns/x",
        cookie=7,
        workload_id=3,
        addresses=(ip_address("10.1.0.5"),),
    )
    return Takeover(remembered=remembered, captured=captured, published=captured)


def test_recovered_pods_are_offered_before_a_ztunnel_may_ask_and_then_enrolled_again() -> None:
    async def scenario(s: Setting) -> None:
        s.registry.take_over([takeover()])
        await s.registry.recovered(5.0)
        assert s.steps.of("u1")[0] is Step.PROVE
        assert set(s.registry.offers()) == {"u1"}
        s.registry.on_session(1)
        s.registry.apply(objects(pod()))
        await eventually_async(lambda: enrolled(s))
        assert not {Step.RELEASE_IN, Step.RELEASE_OUT, Step.WITHDRAW} & set(s.steps.of("u1"))

    run(scenario)


def test_recovery_does_not_wait_for_a_pod_that_cannot_be_found() -> None:
    async def scenario(s: Setting) -> None:
        s.steps.fail[Step.PROVE] = StepError(Code.NETNS_NOT_FOUND, "nothing runs")
        s.registry.take_over([takeover()])
        await s.registry.recovered(5.0)
        assert s.registry.workers[0].state.captured
        offer = s.registry.offers()["u1"]
        assert offer.netns_fd is None  # ztunnel is told to keep what it has.
        assert offer.cookie == 7

    run(scenario)


def test_a_recovered_pod_without_object_and_processes_is_released() -> None:
    async def scenario(s: Setting) -> None:
        s.registry.take_over([takeover()])
        await s.registry.recovered(5.0)
        s.registry.apply(objects())
        await eventually_async(lambda: not s.registry.workers)
        assert [step for step in s.steps.of("u1") if step in (Step.RELEASE_IN, Step.RELEASE_OUT)] == [
            Step.RELEASE_IN,
            Step.RELEASE_OUT,
        ]

    run(scenario)


def test_a_defect_in_a_step_is_retried_and_named() -> None:
    async def scenario(s: Setting) -> None:
        s.steps.fail[Step.ROUTE] = ZeroDivisionError("oops")  # type: ignore[assignment]
        s.registry.apply(objects(pod()))
        await eventually_async(lambda: bool(s.registry.workers[0].state.failure))
        failure = s.registry.workers[0].state.failure
        assert failure is not None
        assert failure.code is Code.STEP_DEFECT
        assert "oops" in failure.reason
        assert "AMB2114" in s.registry.workers[0].explain()
        s.steps.fail.clear()
        await eventually_async(lambda: Step.ROUTE in s.registry.workers[0].state.done)

    run(scenario)
