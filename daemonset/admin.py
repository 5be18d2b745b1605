# SPDX-License-Identifier: Apache-2.0
"""The agent's admin port: readiness, what each pod's state is and why, metrics.

Reads the live state on each request; changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from daemonset.handoff import Handoff
from daemonset.registry import Registry
from daemonset.worker import PodWorker
from mesh.runtime.http import Request, Response, Route, json_response, text
from mesh.runtime.readiness import Readiness
from mesh.telemetry.exposition import render


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """What is read from the maps at each request."""

    counters: Callable[[], Mapping[str, int]]
    fill: Callable[[], Mapping[str, tuple[int, int]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Admin:
    """The routes of the admin port."""

    registry: Registry
    handoff: Handoff
    refused: Callable[[], int]
    """How many connections to the ZDS socket were not ztunnel's."""
    kernel: Kernel
    readiness: Readiness
    settings: Mapping[str, str]
    source: Callable[[], list[dict[str, Any]]]
    """How each kind of objects is followed."""

    def routes(self) -> dict[str, Route]:
        """Return path -> route."""
        return {
            "/healthz/ready": Route(
                self._ready, help="200 when pods can be enrolled, else what is waited for"
            ),
            "/pods": Route(self._pods, help="every pod of this node: state, steps, reason, remedy"),
            "/ztunnel": Route(self._ztunnel, help="connected ztunnels and what they have"),
            "/maps": Route(self._maps, help="counters of the BPF programs and how full the maps are"),
            "/source": Route(self._source, help="where objects come from, how each kind is followed"),
            "/config": Route(self._config, help="settings"),
            "/metrics": Route(self._metrics, help="Prometheus metrics"),
        }

    async def _ready(self, request: Request) -> Response:
        if self.readiness.ready:
            return text("ready")
        return text("waits for " + ", ".join(self.readiness.pending), 503)

    async def _pods(self, request: Request) -> Response:
        enrolled = [describe(worker) for worker in self.registry.workers]
        ignored: list[dict[str, object]] = [
            {
                "namespace": item.pod.namespace,
                "name": item.pod.name,
                "uid": item.pod.uid,
                "state": "ignored",
                "code": str(item.code),
                "reason": item.reason,
                "remedy": item.code.remedy,
            }
            for item in self.registry.ignored
            if not any(w.uid == item.pod.uid for w in self.registry.workers)
        ]
        rows: list[dict[str, object]] = [*enrolled, *ignored]
        rows.sort(key=lambda row: (str(row["namespace"]), str(row["name"])))
        return json_response(rows)

    async def _ztunnel(self, request: Request) -> Response:
        return json_response(self.handoff.describe())

    async def _maps(self, request: Request) -> Response:
        fill = {
            name: {"entries": used, "capacity": size} for name, (used, size) in self.kernel.fill().items()
        }
        return json_response({"counters": dict(self.kernel.counters()), "maps": fill})

    async def _source(self, request: Request) -> Response:
        return json_response(self.source())

    async def _config(self, request: Request) -> Response:
        return json_response(dict(self.settings))

    async def _metrics(self, request: Request) -> Response:
        registry = CollectorRegistry()
        registry.register(_Collector(self))
        body, content_type = render(registry, request.headers.get("accept", ""))
        return Response(body=body, content_type=content_type)


def describe(worker: PodWorker) -> dict[str, object]:
    """Return one pod's state for people and tests."""
    subject, state = worker.subject, worker.state
    failure = state.failure
    known = subject.remembered
    return {
        "namespace": subject.pod.namespace,
        "name": subject.pod.name,
        "uid": subject.pod.uid,
        "state": "enrolled" if state.enrolled else "leaving" if not state.wanted else "enrolling",
        "captured": state.captured,
        "addresses": [str(a) for a in subject.addresses],
        "resolvers": [str(a) for a in known.resolvers] if known else [],
        "workload_id": known.workload_id if known else None,
        "netns": subject.netns.path if subject.netns else None,
        "netns_cookie": known.cookie if known else None,
        "older_connections": [str(item) for item in subject.older],
        "point_to_point": subject.proof.point_to_point if subject.proof else None,
        "done": sorted(step.value for step in state.done),
        "code": str(failure.code) if failure else "",
        "reason": worker.explain(),
        "remedy": failure.code.remedy if failure else "",
        "attempts": failure.attempts if failure else 0,
        "since": worker.since_s,
    }


class _Collector:
    """The agent's metrics, made at each scrape."""

    def __init__(self, admin: Admin) -> None:
        self._admin = admin

    def collect(self) -> Iterator[Metric]:
        """Yield every family."""
        admin = self._admin
        pods = GaugeMetricFamily("ambit_agent_pods", "Pods of this node by state.", labels=("state",))
        states = [str(describe(w)["state"]) for w in admin.registry.workers]
        for state in ("enrolled", "enrolling", "leaving"):
            pods.add_metric((state,), states.count(state))
        pods.add_metric(("ignored",), len(admin.registry.ignored))
        yield pods
        failing = GaugeMetricFamily(
            "ambit_agent_pods_failing", "Pods whose step failed and is tried again.", labels=("step", "code")
        )
        failures = [w.state.failure for w in admin.registry.workers if w.state.failure is not None]
        for step, code in sorted({(f.step.value, str(f.code)) for f in failures}):
            failing.add_metric(
                (step, code), sum((f.step.value, str(f.code)) == (step, code) for f in failures)
            )
        yield failing
        yield GaugeMetricFamily(
            "ambit_agent_ztunnel_sessions", "Connected ztunnels.", value=len(admin.handoff.describe())
        )
        yield CounterMetricFamily(
            "ambit_agent_zds_refused",
            "Connections to the ZDS socket that were not ztunnel's.",
            value=admin.refused(),
        )
        unfollowed = GaugeMetricFamily(
            "ambit_agent_objects_unfollowed_seconds",
            "For how long a kind could not be followed on the API server; 0: it is followed.",
            labels=("kind",),
        )
        for row in admin.source():
            if "failingSeconds" in row:
                unfollowed.add_metric((row["kind"],), row["failingSeconds"])
        yield unfollowed
        yield from self._kernel()

    def _kernel(self) -> Iterator[Metric]:
        events = CounterMetricFamily(
            "ambit_bpf_events", "What the BPF programs did, by reason.", labels=("reason",)
        )
        for reason, count in sorted(self._admin.kernel.counters().items()):
            events.add_metric((reason,), count)
        yield events
        entries = GaugeMetricFamily("ambit_bpf_map_entries", "Entries of a BPF map.", labels=("map",))
        capacity = GaugeMetricFamily("ambit_bpf_map_capacity", "Room of a BPF map.", labels=("map",))
        for name, (used, size) in sorted(self._admin.kernel.fill().items()):
            entries.add_metric((name,), used)
            capacity.add_metric((name,), size)
        yield entries
        yield capacity
