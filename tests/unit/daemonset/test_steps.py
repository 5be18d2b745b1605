# SPDX-License-Identifier: Apache-2.0
"""What each step does to maps, links, files and ztunnel, with all of them pretended."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from ipaddress import ip_address
from math import inf
from pathlib import Path

import pytest

from daemonset import netns, steps
from daemonset.codes import Code
from daemonset.connections import TcpSocket
from daemonset.enroll import GENTLE_ORDER, NetnsReplaced, Step
from daemonset.handoff import Handoff, Offer
from daemonset.netns import Proof
from daemonset.pods import Pod
from daemonset.steps import AgentSteps
from daemonset.store import EnrollmentFiles, PodFiles, Remembered
from daemonset.worker import StepError, Subject
from mesh.model.address import IPAddress
from mesh.runtime.tasks import TaskOwner


class Space(netns.Netns):
    """A namespace without one: any descriptor, a cookie of choice."""

    def __init__(self, cookie: int) -> None:
        self.fd = os.open("/dev/null", os.O_RDONLY)
        self.path = f"/proc/{cookie}/ns/net"
        self.cookie = cookie


class Kernel:
    """Maps and network in one: dictionaries, and calls that fail when told."""

    def __init__(self) -> None:
        self.records: dict[int, Remembered] = {}
        self.denied: set[int] = set()
        self.lookups: dict[str, int] = {}
        self.routed: set[int] = set()
        self.missing: list[set[str]] = []
        self.cookie = 7
        self.spaces: list[Space] = []
        self.next_id = 1
        self.fail: dict[str, Exception] = {}
        self.older_sockets: tuple[TcpSocket, ...] = ()
        self.asked_older = 0
        self.ended: list[TcpSocket] = []

    def _check(self, name: str) -> None:
        if name in self.fail:
            raise self.fail[name]

    def allocate_workload_id(self) -> int:
        self.next_id += 1
        return self.next_id

    def ztunnel(self) -> frozenset[int]:
        return frozenset({42})

    def record_id(self, cookie: int) -> int | None:
        return self.records[cookie].workload_id if cookie in self.records else None

    def write_record(self, pod: Remembered, *, deny_non_tcp: bool) -> None:
        self._check("write_record")
        self.records[pod.cookie] = pod
        if deny_non_tcp:
            self.denied.add(pod.cookie)

    def remove_record(self, cookie: int) -> None:
        self._check("remove_record")
        self.records.pop(cookie, None)

    def missing_listeners(self, cookie: int, addresses: Iterable[IPAddress]) -> Collection[str]:
        return self.missing.pop(0) if len(self.missing) > 1 else self.missing[0] if self.missing else ()

    def attach_lookup(self, uid: str, netns_fd: int, cookie: int) -> None:
        self._check("attach_lookup")
        self.lookups[uid] = cookie

    def detach_lookup(self, uid: str) -> None:
        self.lookups.pop(uid, None)

    def find(self, subject: Subject) -> tuple[netns.Netns, Proof]:
        self._check("find")
        self.spaces.append(Space(self.cookie))
        return self.spaces[-1], Proof(point_to_point=True)

    def reopen(self, subject: Subject) -> netns.Netns | None:
        return None

    def resolvers(self, subject: Subject) -> tuple[IPAddress, ...]:
        return (ip_address("10.96.0.10"),)

    def install_route(self, space: netns.Netns) -> None:
        self._check("install_route")
        self.routed.add(space.cookie)

    def remove_route(self, space: netns.Netns) -> None:
        self.routed.discard(space.cookie)

    def older(
        self, space: netns.Netns, addresses: Collection[IPAddress], ztunnels: Collection[int]
    ) -> tuple[TcpSocket, ...]:
        self.asked_older += 1
        return self.older_sockets

    def end(self, netns_fd: int, sockets: Collection[TcpSocket]) -> int:
        self._check("end")
        self.ended.extend(sockets)
        return len(sockets)


class Ztunnel:
    """Acknowledges everything."""

    def __init__(self) -> None:
        self.got: list[str] = []

    async def add(self, offer: Offer, netns_fd: int) -> str:
        self.got.append(f"add {offer.uid}")
        return ""

    async def keep(self, uid: str) -> str:
        return ""

    async def delete(self, uid: str) -> str:
        self.got.append(f"del {uid}")
        return ""

    async def snapshot_sent(self) -> str:
        return ""

    def close(self) -> None:
        self.got.append("close")


class Time:
    """A clock that goes on by itself."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 0.4
        return self.now

    def wall(self) -> float:
        return self.now


class Setting:
    def __init__(self, directory: Path) -> None:
        self.kernel = Kernel()
        self.ztunnel = Ztunnel()
        self.handoff = Handoff(offers=dict, on_session=lambda _n: None, ack_timeout_s=1.0)
        self.pod_files = PodFiles(directory / "run")
        self.enrollments = EnrollmentFiles(directory / "status", "n1")
        self.tasks = TaskOwner("test")
        self.steps = AgentSteps(
            maps=self.kernel,
            network=self.kernel,
            handoff=self.handoff,
            pod_files=self.pod_files,
            enrollments=self.enrollments,
            clock=Time(),
            tasks=self.tasks,
            grace_s=0.0,
            plaintext_deadline_s=inf,
        )
        pod = Pod(uid="u1", namespace="shop", name="web", addresses=(ip_address("10.1.0.5"),))
        self.subject = Subject(pod=pod)

    def do(self, *wanted: Step) -> NetnsReplaced | None:
        """Do steps one after the other, with a ztunnel connected; return what the last one said."""

        async def body() -> NetnsReplaced | None:
            if not self.handoff.current:
                await self.handoff.opened(self.ztunnel, "pid 1")
            said = None
            for step in wanted:
                said = await self.steps.do(step, self.subject)
                self.subject.footprint |= {step}
            pending = len(self.tasks)
            while pending and len(self.tasks) == pending:
                await asyncio.sleep(0.01)
            return said

        return asyncio.run(body())

    def fails(self, step: Step) -> StepError:
        with pytest.raises(StepError) as failure:
            self.do(step)
        return failure.value


@pytest.fixture
def setting(tmp_path: Path) -> Iterator[Setting]:
    made = Setting(tmp_path)
    yield made
    for space in made.kernel.spaces:
        space.close()


def test_all_steps_leave_what_enrolment_consists_of(setting: Setting) -> None:
    setting.do(*GENTLE_ORDER)
    kernel = setting.kernel
    assert kernel.routed == {7}
    assert kernel.lookups == {"u1": 7}
    assert kernel.records[7].addresses == (ip_address("10.1.0.5"),)
    assert kernel.records[7].resolvers == (ip_address("10.96.0.10"),)
    assert setting.ztunnel.got == ["add u1"]
    assert set(setting.pod_files.load()) == {"u1"}
    assert set(setting.enrollments.published()) == {"u1"}


def test_releasing_undoes_all_of_it_and_may_be_repeated(setting: Setting) -> None:
    setting.do(*GENTLE_ORDER)
    release = (Step.WITHDRAW, Step.GRACE, Step.RELEASE_OUT, Step.RELEASE_IN, Step.RETRACT, Step.UNROUTE)
    setting.do(*release)
    setting.do(*release, Step.FORGET)
    kernel = setting.kernel
    assert (kernel.records, kernel.lookups, kernel.routed) == ({}, {}, set())
    assert setting.pod_files.load() == {}
    assert setting.enrollments.published() == {}
    assert setting.subject.netns is None
    assert all(space.fd == -1 for space in kernel.spaces)


def test_the_same_namespace_keeps_its_id_and_its_descriptor(setting: Setting) -> None:
    setting.do(Step.PROVE)
    first = setting.subject.netns
    assert first is not None
    assert setting.do(Step.PROVE) is None
    assert setting.subject.netns is first
    assert [space.fd >= 0 for space in setting.kernel.spaces] == [True, False]
    assert setting.kernel.next_id == 2


def test_a_record_of_an_earlier_agent_keeps_its_id(setting: Setting) -> None:
    setting.do(Step.PROVE, Step.CAPTURE_OUT)
    earlier = setting.kernel.records[7].workload_id
    setting.subject.remembered = None
    setting.do(Step.PROVE)
    assert setting.subject.remembered is not None
    assert setting.subject.remembered.workload_id == earlier  # type: ignore[unreachable]


def test_a_new_namespace_of_the_pod_is_said_and_the_old_one_let_go_of(setting: Setting) -> None:
    setting.do(*GENTLE_ORDER)
    earlier = setting.kernel.records[7].workload_id
    setting.kernel.cookie = 8
    assert setting.do(Step.PROVE) == NetnsReplaced()
    assert setting.kernel.records == {}
    assert setting.kernel.lookups == {}
    setting.do(Step.CAPTURE_IN, Step.CAPTURE_OUT, Step.OFFER)
    assert setting.kernel.lookups == {"u1": 8}
    assert setting.kernel.records[8].workload_id != earlier
    assert setting.ztunnel.got == ["add u1", "add u1"]


@pytest.mark.parametrize(
    ("step", "call", "error", "code"),
    [
        (Step.PROVE, "find", netns.NetnsError(Code.NOT_LINKED, "no"), Code.NOT_LINKED),
        (Step.ROUTE, "install_route", OSError(1, "no"), Code.ROUTING_FAILED),
        (Step.ROUTE, "install_route", netns.NetnsError(Code.NETNS_NOT_FOUND, "no"), Code.NETNS_NOT_FOUND),
        (Step.CAPTURE_IN, "attach_lookup", OSError(1, "no"), Code.LOOKUP_FAILED),
        (Step.CAPTURE_OUT, "write_record", OSError(1, "no"), Code.RECORD_FAILED),
        (Step.RELEASE_OUT, "remove_record", OSError(1, "no"), Code.RELEASE_FAILED),
    ],
)
def test_each_failure_has_the_code_of_its_step(
    setting: Setting, step: Step, call: str, error: Exception, code: Code
) -> None:
    setting.do(Step.PROVE)
    setting.kernel.fail[call] = error
    failure = setting.fails(step)
    assert failure.code is code
    assert "no" in failure.reason


def test_an_unwritable_status_directory_is_named(setting: Setting, tmp_path: Path) -> None:
    (tmp_path / "status").write_text("in the way")
    setting.do(Step.PROVE)
    assert setting.fails(Step.PUBLISH).code is Code.PUBLISH_FAILED


def test_a_pod_that_is_gone_does_not_wait_for_its_withdrawal(
    setting: Setting, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    setting.do(*GENTLE_ORDER)
    directory = tmp_path / "status" / "Enrollment" / "shop"
    (directory / "web.yaml").rename(directory / "kept")
    (directory / "web.yaml").symlink_to("kept")

    def refused(path: Path, missing_ok: bool = False) -> None:
        raise OSError("the API server does not answer")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "unlink", refused)
        assert setting.fails(Step.WITHDRAW).code is Code.RELEASE_FAILED
        setting.subject.gone = True
        setting.do(Step.WITHDRAW)
    assert "left to the sweep: the API server does not answer" in caplog.text
    assert set(setting.enrollments.published()) == {"u1"}


def test_listeners_that_never_come_are_named_and_ztunnel_is_to_open_new_ones(setting: Setting) -> None:
    setting.do(Step.PROVE, Step.OFFER)
    setting.kernel.missing = [{"hbone (IPv6)", "outbound (IPv4)"}]
    failure = setting.fails(Step.LISTEN)
    assert failure.code is Code.LISTENERS_MISSING
    assert "hbone (IPv6), outbound (IPv4)" in failure.reason
    setting.do(Step.OFFER)
    assert setting.ztunnel.got == ["add u1", "del u1", "add u1"]


def test_listeners_are_waited_for(setting: Setting) -> None:
    setting.kernel.missing = [{"hbone (IPv4)"}, set()]
    setting.do(Step.PROVE, Step.OFFER, Step.LISTEN)
    assert setting.ztunnel.got == ["add u1"]


def test_non_tcp_is_denied_where_the_pod_says_so(setting: Setting) -> None:
    setting.do(Step.PROVE, Step.CAPTURE_OUT)
    assert setting.kernel.denied == set()
    setting.subject.pod = replace(setting.subject.pod, annotations={"ambit.io/non-tcp": "deny"})
    setting.do(Step.CAPTURE_OUT)
    assert setting.kernel.denied == {7}


OLD = TcpSocket(
    local=ip_address("10.1.0.5"),
    local_port=8080,
    remote=ip_address("10.9.0.1"),
    remote_port=40000,
    mark=0,
    cgroup_id=3,
    family=2,
    raw_id=bytes(48),
)


def test_older_connections_are_listed_once_and_stay_without_a_deadline(
    setting: Setting, caplog: pytest.LogCaptureFixture
) -> None:
    setting.kernel.older_sockets = (OLD,)
    setting.do(Step.PROVE, Step.CAPTURE_OUT, Step.CAPTURE_OUT)
    assert setting.kernel.asked_older == 1
    assert setting.subject.older == (OLD,)
    assert "10.1.0.5:8080 <-> 10.9.0.1:40000" in caplog.text
    assert setting.kernel.ended == []


@pytest.mark.parametrize("of_pod", [True, False])
def test_older_connections_end_at_the_deadline_of_pod_or_node(setting: Setting, of_pod: bool) -> None:
    setting.kernel.older_sockets = (OLD,)
    if of_pod:
        setting.subject.pod = replace(setting.subject.pod, plaintext_deadline_s=0.0)
        setting.steps.plaintext_deadline_s = 3600.0
    else:
        setting.steps.plaintext_deadline_s = 0.0
    setting.subject.footprint = frozenset({Step.CAPTURE_OUT})
    setting.do(Step.PROVE, Step.CAPTURE_OUT)
    assert setting.kernel.ended == [OLD]
    assert setting.subject.older == ()


def test_a_pod_without_open_namespace_is_offered_to_be_kept() -> None:
    pod = Pod(uid="u1", namespace="shop", name="web", service_account="web")
    remembered = Remembered(
        uid="u1",
        namespace="shop",
        name="web",
        service_account="web",
        netns_path="/x",
        cookie=9,
        workload_id=1,
        addresses=(),
    )
    offer = steps.offer_of(Subject(pod=pod, remembered=remembered))
    assert (offer.netns_fd, offer.cookie) == (None, 9)
