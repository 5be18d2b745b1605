# SPDX-License-Identifier: Apache-2.0
"""Random moves, kills and restarts: whatever the order, captured pods are never plain and all settles."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from agent_bed import Bed, Pod, ask, inside

from tests.support.eventually import eventually

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, network namespaces and BPF"),
]
ACTIONS = 25
OUT = {"istio.io/dataplane-mode": "none"}


@pytest.fixture
def bed() -> Iterator[Bed]:
    made = Bed()
    try:
        yield made
    finally:
        made.close()


class Witness:
    """Calls a pod that is always meshed, and the pod calls out, until told to stop; keeps every answer."""

    def __init__(self, bed: Bed, pod: Pod) -> None:
        self.answers: set[str] = set()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=inside, args=(bed.node, lambda a=a: self._call(a)))  # type: ignore[misc]
            for a in (pod.ip, pod.ip6)
        ]
        for thread in self._threads:
            thread.start()

    def _call(self, address: str) -> None:
        while not self._stop.wait(0.01):
            self.answers.add(" ".join(ask(address, 8080, timeout_s=1.0).split()[:2]))

    def stop(self) -> set[str]:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        return self.answers


class Soak:
    """The actions; each leaves the bed able to take any other."""

    def __init__(self, bed: Bed, seed: int) -> None:
        self.bed = bed
        self.random = random.Random(seed)
        self.always = Pod(bed, "always")
        self.moving = [Pod(bed, f"moving{i}") for i in range(3)]
        self.wanted = dict.fromkeys([pod.name for pod in self.moving], True)
        self.done: list[str] = []

    def begin(self) -> None:
        for pod in (self.always, *self.moving):
            self.bed.write(pod.object())
        for pod in (self.always, *self.moving):
            self.bed.wait_enrolled(pod)

    def act(self) -> None:
        action: Callable[[], None] = self.random.choice(
            [self.flip, self.flip, self.flip, self.kill_ztunnel, self.kill_agent, self.sandbox]
        )
        self.done.append(action.__name__)
        action()

    def flip(self) -> None:
        pod = self.random.choice(self.moving)
        self.wanted[pod.name] = not self.wanted[pod.name]
        self.bed.write(pod.object(labels={} if self.wanted[pod.name] else OUT))

    def kill_ztunnel(self) -> None:
        assert self.bed.ztunnel is not None
        self.bed.stop(self.bed.ztunnel, signal.SIGKILL)
        self.bed.start_ztunnel()

    def kill_agent(self) -> None:
        assert self.bed.agent is not None
        self.bed.stop(self.bed.agent, signal.SIGKILL)
        self.bed.start_agent()

    def sandbox(self) -> None:
        pod = self.random.choice(self.moving)
        assert self.bed.cni("DEL", pod)["result"] == "removed"
        answer = self.bed.cni("ADD", pod)
        assert answer["result"] in ("enrolled", "ignored"), answer

    def settled(self) -> bool:
        states = {row["name"]: row["state"] for row in self.bed.agent_state("/pods") or []}
        expected = {name: "enrolled" if wanted else "ignored" for name, wanted in self.wanted.items()}
        return states == expected | {"always": "enrolled"}


@pytest.mark.parametrize("seed", [1, 6])
@pytest.mark.timeout(240)
def test_whatever_the_order_no_captured_pod_is_plain_and_all_settles(bed: Bed, seed: int) -> None:
    bed.start()
    soak = Soak(bed, seed)
    soak.begin()
    witness = Witness(bed, soak.always)
    try:
        for _ in range(ACTIONS):
            soak.act()
        eventually(soak.settled, timeout_s=40, what=f"settled after {soak.done}")
    finally:
        answers = witness.stop()
    # While ztunnel is away it is refused or lost; never does the application answer.
    assert "ztunnel inbound" in answers
    assert not [answer for answer in answers if answer.startswith("app")], (answers, soak.done)

    captured = {soak.always.uid} | {pod.uid for pod in soak.moving if soak.wanted[pod.name]}
    assert {path.name for path in (bed.bpffs / "pods").iterdir()} == captured
    assert {path.stem for path in (bed.directory / "agent" / "pods").iterdir()} == captured
    assert bed.agent_state("/maps")["maps"]["pods"]["entries"] == len(captured)
    published = (bed.directory / "status" / "Enrollment").rglob("*.yaml")
    assert {Path(path).stem for path in published} == {"always"} | {
        name for name, wanted in soak.wanted.items() if wanted
    }
    for pod in soak.moving:
        answer = inside(bed.node, lambda p=pod: ask(p.ip, 8080))  # type: ignore[misc]
        assert answer.startswith("ztunnel inbound" if soak.wanted[pod.name] else f"app {pod.name}")
        assert pod.kernel_mark_rule() is soak.wanted[pod.name]
