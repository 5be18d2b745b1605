# SPDX-License-Identifier: Apache-2.0
"""The exchange against scripted sides: what is sent, tried again, timed out and logged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from mesh.model.route import HeaderOperations, Mirror, Retry
from mesh.model.workload import NamespacedHostname
from waypoint.http.message import Framing, Headers, RequestHead, ResponseHead
from waypoint.proxy.exchange import Exchange, ExchangeLimits, ExchangeRecord
from waypoint.proxy.streams import Failure, UpstreamEvents
from waypoint.routing.plan import DEFAULT_RETRY, Forward, answer

SERVICE = NamespacedHostname(namespace="shop", hostname="product.shop.svc.cluster.local")


@dataclass
class Client:
    """Records what the client gets."""

    said: list[object] = field(default_factory=list)
    paused: bool = False

    def send_interim(self, head: ResponseHead) -> None:
        self.said.append(("interim", head.status))

    def send_head(self, head: ResponseHead) -> None:
        self.said.append((head.status, dict(head.headers)))

    def send_data(self, data: bytes) -> None:
        self.said.append(data)

    def send_end(self, trailers: Headers) -> None:
        self.said.append("end")

    def reset(self, detail: str) -> None:
        self.said.append(("reset", detail))

    def pause_request(self) -> None:
        self.paused = True

    def resume_request(self) -> None:
        self.paused = False


@dataclass
class Try:
    """Records what one upstream try is given; `events` answers."""

    events: UpstreamEvents
    avoid: frozenset[str]
    endpoint: str
    reused: bool = False
    got: list[object] = field(default_factory=list)
    cancelled: bool = False

    def send_head(self, head: RequestHead) -> None:
        self.got.append((head.method, head.target))

    def send_data(self, data: bytes) -> None:
        self.got.append(data)

    def send_end(self, trailers: Headers) -> None:
        self.got.append("end")

    def cancel(self) -> None:
        self.cancelled = True

    def pause_response(self) -> None:
        self.got.append("pause")

    def resume_response(self) -> None:
        self.got.append("resume")


@dataclass
class Timer:
    seconds: float
    callback: Callable[[], None]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


class Bench:
    """One exchange with a scripted client, servers and time."""

    def __init__(
        self,
        forward: Forward | None = None,
        *,
        method: str = "GET",
        limits: ExchangeLimits | None = None,
        undecided: bool = False,
        admit_retry: Callable[[], str] = lambda: "",
    ):
        self.client = Client()
        self.tries: list[Try] = []
        self.timers: list[Timer] = []
        self.records: list[ExchangeRecord] = []
        self.request = request(method)
        self.exchange = Exchange(
            request=self.request,
            plan=None if undecided else forward or plan(self.request),
            downstream=self.client,
            connect=self._connect,
            call_later=self._call_later,
            random=lambda: 0.5,
            on_done=self.records.append,
            admit_retry=admit_retry,
            limits=limits,
        )

    def _connect(self, forward: Forward, avoid: frozenset[str], events: UpstreamEvents) -> Try:
        self.tries.append(Try(events=events, avoid=avoid, endpoint=f"10.0.0.{len(self.tries) + 1}:80"))
        return self.tries[-1]

    def _call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        self.timers.append(Timer(seconds, callback))
        return self.timers[-1]

    def fire(self) -> Timer:
        timer = next(t for t in reversed(self.timers) if not t.cancelled)
        timer.cancel()
        timer.callback()
        return timer


def request(method: str = "GET") -> RequestHead:
    return RequestHead(method=method, target="/x", authority="product", headers=[], framing=Framing.NONE)


def plan(head: RequestHead | None = None, **changes: object) -> Forward:
    return Forward(head=head or request(), service=SERVICE, port=80, source="HTTPRoute/shop/r#0", **changes)  # type: ignore[arg-type]


def response(status: int = 200, *headers: tuple[str, str]) -> ResponseHead:
    return ResponseHead(status=status, reason="", headers=list(headers), framing=Framing.CHUNKED)


def test_a_response_reaches_the_client_with_its_header_operations() -> None:
    bench = Bench(
        plan(response_headers=(HeaderOperations(set=(("x-v", "2"),)), HeaderOperations(add=(("x-v", "3"),))))
    )
    bench.exchange.start()
    bench.exchange.on_request_end([])
    bench.tries[0].events.on_response(response(200, ("x-v", "1")))
    bench.tries[0].events.on_data(b"hello")
    bench.tries[0].events.on_end([])
    assert bench.tries[0].got == [("GET", "/x"), "end"]
    assert bench.client.said == [(200, {"x-v": "2,3"}), b"hello", "end"]
    (record,) = bench.records
    assert (record.status, record.flag, record.tries, record.endpoint) == (200, "-", 1, "10.0.0.1:80")
    assert record.response_bytes == 5


def test_an_answer_needs_no_upstream_and_a_head_request_gets_no_body() -> None:
    for method, body in (("GET", [b"no rule\n"]), ("HEAD", [])):
        bench = Bench(answer(404, flag="NR", detail="no rule"), method=method)  # type: ignore[arg-type]
        bench.exchange.start()
        head, *rest = bench.client.said
        assert isinstance(head, tuple)
        assert (head[0], head[1]["content-length"]) == (404, "8")
        assert rest == [*body, "end"]
        assert not bench.tries
        assert bench.records[0].flag == "NR"


def test_a_grpc_call_learns_of_a_failure_by_its_status() -> None:
    bench = Bench(answer(403, flag="-", detail="denied by shop/p"))  # type: ignore[arg-type]
    bench.request.headers.append(("content-type", "application/grpc+proto"))
    bench.exchange.start()
    head, *rest = bench.client.said
    assert head == (
        200,
        {
            "content-type": "application/grpc",
            "grpc-status": "7",
            "grpc-message": "denied by shop/p",
            "content-length": "0",
        },
    )
    assert rest == ["end"]
    assert bench.records[0].detail == "denied by shop/p"


def test_a_refused_connection_is_tried_on_another_endpoint_with_the_body_again() -> None:
    bench = Bench(method="POST")
    bench.exchange.start()
    bench.exchange.on_request_data(b"body")
    bench.exchange.on_request_end([])
    bench.tries[0].events.on_failure(Failure.CONNECT, "refused")
    assert bench.fire().seconds == pytest.approx(0.0125)
    assert bench.tries[1].got == [("POST", "/x"), b"body", "end"]
    assert bench.tries[1].avoid == {"10.0.0.1:80"}
    bench.tries[1].events.on_response(response())
    bench.tries[1].events.on_end([])
    assert bench.records[0].tries == 2


def test_a_grpc_status_among_the_headers_is_tried_again_and_the_same_endpoint_may_be() -> None:
    retry = Retry(attempts=1, grpc_statuses=(14,), other_endpoint=False)
    bench = Bench(plan(retry=retry))
    bench.exchange.start()
    bench.exchange.on_request_end([])
    bench.tries[0].events.on_response(response(200, ("grpc-status", "14")))
    assert bench.tries[0].cancelled
    bench.fire()
    assert bench.tries[1].avoid == frozenset()
    bench.tries[1].events.on_response(response(200, ("grpc-status", "14")))
    bench.tries[1].events.on_end([])
    assert bench.client.said == [(200, {"grpc-status": "14"}), "end"]
    assert (bench.records[0].tries, bench.records[0].flag) == (2, "URX")


def test_a_refused_stream_is_tried_again_by_default() -> None:
    bench = Bench(plan(retry=DEFAULT_RETRY))
    bench.exchange.start()
    for index in range(3):
        bench.tries[index].events.on_failure(Failure.REFUSED, "GOAWAY")
        if index < 2:
            bench.fire()
    assert bench.client.said[0][0] == 503  # type: ignore[index]
    assert bench.records[0].flag == "UR,URX"


def test_tries_end_with_the_policy_and_the_cause_is_told() -> None:
    bench = Bench()
    bench.exchange.start()
    for index in range(3):
        bench.tries[index].events.on_failure(Failure.CONNECT, "connection refused by 10.0.0.9:80")
        if index < 2:
            bench.fire()
    assert len(bench.tries) == 3
    assert bench.client.said[0][0] == 503  # type: ignore[index]
    assert bench.client.said[1] == b"connection refused by 10.0.0.9:80\n"
    assert bench.records[0].flag == "UF,URX"


def test_a_body_over_the_replay_limit_is_not_tried_again() -> None:
    bench = Bench(method="POST", limits=ExchangeLimits(replay_bytes=4))
    bench.exchange.start()
    bench.exchange.on_request_data(b"1234")
    bench.exchange.on_request_data(b"5")
    bench.tries[0].events.on_failure(Failure.CONNECT, "refused")
    assert len(bench.tries) == 1
    assert bench.records[0].status == 503


@pytest.mark.parametrize(
    ("method", "reused", "tried"), [("GET", True, 2), ("GET", False, 1), ("POST", True, 1)]
)
def test_a_lost_race_on_a_reused_connection_is_tried_again_when_that_is_safe(
    method: str, reused: bool, tried: int
) -> None:
    bench = Bench(method=method)
    bench.exchange.start()
    bench.tries[0].reused = reused
    bench.tries[0].events.on_failure(Failure.RESET, "gone")
    if tried == 2:
        bench.fire()
    assert len(bench.tries) == tried


def test_a_retriable_status_is_tried_again_and_the_last_one_is_passed_on() -> None:
    bench = Bench(plan(retry=Retry(attempts=1, status_codes=(503,))))
    bench.exchange.start()
    bench.tries[0].events.on_response(response(503))
    assert bench.tries[0].cancelled
    bench.fire()
    bench.tries[1].events.on_response(response(503))
    bench.tries[1].events.on_end([])
    assert bench.client.said == [(503, {}), "end"]
    assert bench.records[0].flag == "URX"


def test_a_retry_that_is_not_admitted_leaves_the_answer_as_it_is_and_says_so() -> None:
    bench = Bench(
        plan(retry=Retry(attempts=1, status_codes=(503,))), admit_retry=lambda: "the budget is spent"
    )
    bench.exchange.start()
    bench.tries[0].events.on_response(response(503))
    bench.tries[0].events.on_end([])
    assert bench.client.said == [(503, {}), "end"]
    record = bench.records[0]
    assert (record.flag, record.detail, record.tries) == ("UO", "not tried again: the budget is spent", 1)


def test_a_failure_that_may_not_be_tried_again_tells_both_causes() -> None:
    bench = Bench(admit_retry=lambda: "the budget is spent")
    bench.exchange.start()
    bench.tries[0].events.on_failure(Failure.CONNECT, "refused")
    record = bench.records[0]
    assert (record.status, record.flag) == (503, "UF,UO")
    assert record.detail == "refused; not tried again: the budget is spent"


def test_only_a_retry_that_would_be_made_asks_to_be_admitted() -> None:
    asked: list[int] = []
    for retry, failure in ((Retry(attempts=0), Failure.CONNECT), (Retry(attempts=3), Failure.OVERFLOW)):
        bench = Bench(plan(retry=retry), admit_retry=lambda: asked.append(1) or "")  # type: ignore[func-returns-value]
        bench.exchange.start()
        bench.tries[0].events.on_failure(failure, "x")
    assert asked == []


def test_a_reset_within_the_response_resets_the_client() -> None:
    bench = Bench(plan(retry=Retry(attempts=5, on_reset=True)))
    bench.exchange.start()
    bench.tries[0].events.on_response(response())
    bench.tries[0].events.on_failure(Failure.RESET, "lost")
    assert bench.client.said == [(200, {}), ("reset", "lost")]
    assert len(bench.tries) == 1
    assert bench.records[0].flag == "UC"


def test_the_request_deadline_ends_everything_with_504() -> None:
    bench = Bench(plan(request_timeout_s=2.0))
    bench.exchange.start()
    assert bench.fire().seconds == 2.0
    assert bench.tries[0].cancelled
    assert bench.client.said[0][0] == 504  # type: ignore[index]
    assert bench.records[0].flag == "UT"
    assert "2 s" in bench.records[0].detail
    bench.tries[0].events.on_response(response())
    assert len(bench.client.said) == 3


def test_a_try_deadline_begins_another_try() -> None:
    bench = Bench(plan(try_timeout_s=1.0, retry=Retry(attempts=1)))
    bench.exchange.start()
    bench.fire()
    assert bench.tries[0].cancelled
    bench.fire()
    assert len(bench.tries) == 2
    bench.fire()
    assert bench.client.said[0][0] == 504  # type: ignore[index]


def test_a_client_that_leaves_ends_the_try_and_is_recorded() -> None:
    bench = Bench()
    bench.exchange.start()
    bench.exchange.on_request_reset()
    assert bench.tries[0].cancelled
    assert (bench.records[0].flag, bench.records[0].status) == ("DC", 0)
    assert bench.client.said == []


def test_a_client_that_leaves_between_two_tries_stops_the_next_one() -> None:
    bench = Bench()
    bench.exchange.start()
    bench.tries[0].events.on_failure(Failure.CONNECT, "refused")
    bench.exchange.on_request_reset()
    assert all(timer.cancelled for timer in bench.timers)


def test_back_pressure_passes_both_ways_and_ends_with_the_try() -> None:
    bench = Bench()
    bench.exchange.start()
    bench.tries[0].events.on_request_blocked(True)
    assert bench.client.paused
    bench.exchange.on_response_blocked(True)
    bench.exchange.on_response_blocked(False)
    assert bench.tries[0].got[-2:] == ["pause", "resume"]
    bench.tries[0].events.on_failure(Failure.CONNECT, "refused")
    assert not bench.client.paused


def test_an_interim_100_reaches_only_a_client_that_asked() -> None:
    bench = Bench()
    bench.exchange.start()
    bench.tries[0].events.on_response(response(100))
    bench.tries[0].events.on_response(response(103))
    bench.request.expects_continue = True
    bench.tries[0].events.on_response(response(100))
    assert bench.client.said == [("interim", 103), ("interim", 100)]


def test_an_injected_delay_comes_first_and_is_flagged() -> None:
    bench = Bench(plan(delay_s=3.0))
    bench.exchange.start()
    bench.exchange.on_request_data(b"early")
    assert not bench.tries
    assert bench.fire().seconds == 3.0
    assert bench.tries[0].got == [("GET", "/x"), b"early"]
    bench.tries[0].events.on_response(response())
    bench.tries[0].events.on_end([])
    assert bench.records[0].flag == "DI"


def test_a_mirror_gets_a_copy_and_its_response_goes_nowhere() -> None:
    bench = Bench(plan(mirrors=(Mirror(service=SERVICE, port=81),)), method="POST")
    bench.exchange.start()
    bench.exchange.on_request_data(b"body")
    bench.exchange.on_request_end([])
    copy, real = bench.tries
    assert copy.got[1:] == real.got[1:] == [b"body", "end"]
    copy.events.on_response(response(500))
    copy.events.on_end([])
    assert bench.client.said == []
    real.events.on_response(response())
    real.events.on_end([])
    assert bench.client.said == [(200, {}), "end"]


def test_a_mirror_that_cannot_keep_up_is_given_up_alone() -> None:
    bench = Bench(plan(mirrors=(Mirror(service=SERVICE, port=81),)), limits=ExchangeLimits(replay_bytes=4))
    bench.exchange.start()
    copy, real = bench.tries
    copy.events.on_request_blocked(True)
    bench.exchange.on_request_data(b"1234")
    assert not copy.cancelled
    bench.exchange.on_request_data(b"5")
    assert copy.cancelled
    assert real.got[-1] == b"5"
    assert not bench.client.paused


def test_a_body_that_outgrows_the_kept_part_during_a_delay_waits_and_is_whole() -> None:
    bench = Bench(plan(request("POST"), delay_s=3.0), limits=ExchangeLimits(replay_bytes=4))
    bench.exchange.start()
    bench.exchange.on_request_data(b"1234")
    assert not bench.client.paused
    bench.exchange.on_request_data(b"5")
    assert bench.client.paused
    bench.exchange.on_request_data(b"6")
    bench.fire()
    assert not bench.client.paused
    assert bench.tries[0].got == [("POST", "/x"), b"1234", b"5", b"6"]
    bench.tries[0].events.on_failure(Failure.CONNECT, "refused")
    assert len(bench.tries) == 1, "a body that is no longer kept cannot be sent again"
    assert bench.records[0].status == 503


def test_a_request_without_a_plan_waits_for_its_decision() -> None:
    bench = Bench(undecided=True, method="POST")
    bench.exchange.start()
    bench.exchange.on_request_data(b"body")
    bench.exchange.on_request_end([])
    assert not bench.tries
    bench.exchange.decide(plan(bench.request))
    assert bench.tries[0].got == [("POST", "/x"), b"body", "end"]


def test_a_request_may_be_refused_by_a_late_decision() -> None:
    bench = Bench(undecided=True)
    bench.exchange.start()
    bench.exchange.decide(answer(403, flag="UAEX", detail="no"))
    assert bench.client.said[0][0] == 403  # type: ignore[index]
    assert (bench.records[0].flag, len(bench.tries)) == ("UAEX", 0)


def test_a_client_that_leaves_before_the_decision_costs_no_try() -> None:
    bench = Bench(undecided=True)
    bench.exchange.start()
    bench.exchange.on_request_reset()
    bench.exchange.decide(plan())
    assert not bench.tries
    assert bench.records[0].flag == "DC"
