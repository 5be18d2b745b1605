# SPDX-License-Identifier: Apache-2.0
"""One request from its head to the last byte of its response, over any number of tries.

The exchange owns the order of things: what is sent when, which failure is tried
again, which deadline ends what. It knows no protocol, no socket and no clock; both
sides are the interfaces of `waypoint.proxy.streams`, time is `CallLater`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from waypoint.http.grpc import failure_headers, is_grpc
from waypoint.http.message import Framing, Headers, RequestHead, ResponseHead
from waypoint.proxy.mirror import Connect, Copy
from waypoint.proxy.retry import retries_failure, retries_response
from waypoint.proxy.streams import CallLater, Downstream, Failure, Timer, Upstream
from waypoint.routing.plan import Answer, Forward, Random, answer
from waypoint.routing.rewrite import change_headers

_IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
_FAILURE_ANSWER = {
    Failure.CONNECT: (503, "UF"),
    Failure.REFUSED: (503, "UR"),
    Failure.RESET: (503, "UC"),
    Failure.PROTOCOL: (502, "UPE"),
    Failure.OVERFLOW: (503, "UO"),
    Failure.NO_HOST: (503, "UH"),
    Failure.NO_CLUSTER: (503, "NC"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeLimits:
    """Bounds of one exchange."""

    replay_bytes: int = 65_536
    """Request body kept for another try; a longer one is not tried again."""
    max_backoff_s: float = 0.25
    """Longest pause between two tries."""


@dataclass(slots=True, kw_only=True)
class ExchangeRecord:
    """What the access log and the metrics say of an exchange."""

    request: RequestHead
    plan: Forward | Answer | None
    """None: the client went away before it was decided."""
    status: int = 0
    """0: the client went away before a response."""
    flag: str = "-"
    detail: str = ""
    tries: int = 0
    endpoint: str = ""
    request_bytes: int = 0
    response_bytes: int = 0
    response_headers: Headers = field(default_factory=list)
    trailers: Headers = field(default_factory=list)


class Exchange:
    """Runs one request; `on_done` is called exactly once, when both directions have ended.

    Without a plan it holds the request, its body only as far as that can be kept, until `decide`.
    """

    def __init__(
        self,
        *,
        request: RequestHead,
        plan: Forward | Answer | None,
        downstream: Downstream,
        connect: Connect,
        call_later: CallLater,
        random: Random,
        on_done: Callable[[ExchangeRecord], None],
        admit_retry: Callable[[], str] = lambda: "",
        limits: ExchangeLimits | None = None,
    ) -> None:
        self.record = ExchangeRecord(request=request, plan=plan)
        self._plan = plan
        self._down = downstream
        self._connect = connect
        self._call_later = call_later
        self._random = random
        self._on_done = on_done
        self._admit_retry = admit_retry
        self._not_retried = ""
        self._limits = limits or ExchangeLimits()
        self._try: _Try | None = None
        self._avoid: frozenset[str] = frozenset()
        self._replay: list[bytes] | None = []
        self._request_ended = False
        self._trailers: Headers = []
        self._head_sent = False
        self._held = False
        self._done = False
        self._deadline: Timer | None = None
        self._pause: Timer | None = None
        self._mirrors: list[Copy] = []

    @property
    def done(self) -> bool:
        """Whether nothing more will be sent to the client."""
        return self._done

    def start(self) -> None:
        """Answer, or begin the first try; after the injected delay, if there is one."""
        plan = self._plan
        if plan is None:
            return
        if isinstance(plan, Forward) and plan.request_timeout_s is not None:
            self._deadline = self._call_later(plan.request_timeout_s, self._on_deadline)
        if plan.delay_s:
            self.record.flag = "DI"
            self._pause = self._call_later(plan.delay_s, self._proceed)
        else:
            self._proceed()

    def decide(self, plan: Forward | Answer) -> None:
        """Go on with a request that was started without a plan; no effect once it is over."""
        if self._done:
            return
        self._plan = self.record.plan = plan
        self.start()

    def _proceed(self) -> None:
        self._pause = None
        if self._plan is None:
            raise RuntimeError("a request goes on before it is decided")
        if self._held:
            self._held = False
            self._down.resume_request()
        if isinstance(self._plan, Answer):
            self._answer(self._plan)
            return
        self._mirrors = [
            Copy(self._connect, self._plan, m, self._limits.replay_bytes) for m in self._plan.mirrors
        ]
        for piece in self._replay or ():
            self._copy_data(piece)
        if self._request_ended:
            self._copy_end(self._trailers)
        self._begin_try(self._plan)

    def _copy_data(self, data: bytes) -> None:
        for copy in self._mirrors:
            copy.send_data(data)

    def _copy_end(self, trailers: Headers) -> None:
        for copy in self._mirrors:
            copy.send_end(trailers)

    # --- the client's side

    def on_request_data(self, data: bytes) -> None:
        """Take a piece of the request's body."""
        self.record.request_bytes += len(data)
        if self._done:
            return
        if self._replay is not None:
            self._replay.append(data)
            if self.record.request_bytes > self._limits.replay_bytes:
                self._outgrow()
        self._copy_data(data)
        if self._try is not None:
            self._try.upstream.send_data(data)
        elif self._replay is None:
            # Between two tries: what can no longer be replayed cannot be tried again either.
            self._give_up(503, "UF", "the request's body outgrew what is kept for another try")

    def _outgrow(self) -> None:
        """Keep no more of the body for another try; before the first one, make the client wait."""
        if self.record.tries:
            self._replay = None
        elif not self._held:
            self._held = True
            self._down.pause_request()

    def on_request_end(self, trailers: Headers) -> None:
        """The request is complete."""
        self._request_ended = True
        self._trailers = trailers
        self._copy_end(trailers)
        if self._try is not None and not self._done:
            self._try.upstream.send_end(trailers)

    def on_request_reset(self) -> None:
        """The client went away: give up the try and say so in the record."""
        if self._done:
            return
        self.record.flag = "DC"
        self.record.detail = "the client ended the connection first"
        self._finish()

    def on_response_blocked(self, blocked: bool) -> None:
        """The client takes no more (or again takes) bytes of the response."""
        if self._try is None:
            return
        if blocked:
            self._try.upstream.pause_response()
        else:
            self._try.upstream.resume_response()

    # --- tries

    def _begin_try(self, plan: Forward) -> None:
        self._pause = None
        self.record.tries += 1
        current = _Try(self)
        self._try = current
        current.upstream = self._connect(plan, self._avoid, current)
        if plan.try_timeout_s is not None:
            current.timer = self._call_later(plan.try_timeout_s, current.on_timeout)
        current.upstream.send_head(plan.head)
        for piece in self._replay or ():
            if self._try is current:
                current.upstream.send_data(piece)
        if self.record.request_bytes > self._limits.replay_bytes:
            self._replay = None
        if self._request_ended and self._try is current:
            current.upstream.send_end(self._trailers)

    def _end_try(self) -> None:
        current, self._try = self._try, None
        if current is not None:
            if current.timer is not None:
                current.timer.cancel()
            if current.blocked:
                self._down.resume_request()
            self.record.endpoint = current.upstream.endpoint or self.record.endpoint
            elsewhere = isinstance(self._plan, Forward) and self._plan.retry.other_endpoint
            if current.upstream.endpoint and elsewhere:
                self._avoid |= {current.upstream.endpoint}

    def _may_retry(self) -> bool:
        if self._head_sent or self._replay is None or not isinstance(self._plan, Forward):
            return False
        if self.record.tries > self._plan.retry.attempts:
            return False
        self._not_retried = self._admit_retry()
        return not self._not_retried

    def _retry(self) -> None:
        if not isinstance(self._plan, Forward):
            raise TypeError("an answer is not tried again")
        plan = self._plan
        ceiling = min(plan.retry.backoff_s * (2 ** (self.record.tries - 1)), self._limits.max_backoff_s)
        self._pause = self._call_later(ceiling * self._random(), lambda: self._begin_try(plan))

    def _on_response(self, head: ResponseHead) -> None:
        if head.interim:
            if head.status != 100 or self.record.request.expects_continue:
                self._down.send_interim(head)
            return
        if not isinstance(self._plan, Forward):
            raise TypeError("an answer has no upstream")
        if retries_response(self._plan.retry, head):
            if self._may_retry():
                current = self._try
                self._end_try()
                if current is not None:
                    current.upstream.cancel()
                self._retry()
                return
            if self.record.tries > 1:
                self.record.flag = "URX"
        if self._not_retried:
            self.record.flag = "UO"
            self.record.detail = f"not tried again: {self._not_retried}"
        for operations in self._plan.response_headers:
            head.headers = change_headers(head.headers, operations)
            head.hop_by_hop = True
        self._replay = None
        self._send_head(head)

    def _on_failure(self, failure: Failure, detail: str, *, lost_race: bool) -> None:
        self._end_try()
        if self._head_sent:
            self.record.flag = "UC" if failure is Failure.RESET else "UPE"
            self.record.detail = detail
            self._down.reset(detail)
            self._finish()
            return
        if self._worth_retry(failure, lost_race=lost_race) and self._may_retry():
            self._retry()
            return
        status, flag = _FAILURE_ANSWER[failure]
        self._give_up(status, flag, detail)

    def _worth_retry(self, failure: Failure, *, lost_race: bool) -> bool:
        lost_race = lost_race and self.record.request.method in _IDEMPOTENT
        return isinstance(self._plan, Forward) and retries_failure(
            self._plan.retry, failure, lost_race=lost_race
        )

    # --- deadlines

    def _on_deadline(self) -> None:
        self._deadline = None
        seconds = self._plan.request_timeout_s if isinstance(self._plan, Forward) else None
        self._time_out(f"request timeout of {seconds:g} s" if seconds is not None else "request timeout")

    def _on_try_timeout(self) -> None:
        current = self._try
        if current is None or not isinstance(self._plan, Forward):
            return
        current.upstream.cancel()
        if not self._head_sent and self._may_retry():
            self._end_try()
            self._retry()
            return
        self._time_out(f"try timeout of {self._plan.try_timeout_s or 0:g} s")

    def _time_out(self, detail: str) -> None:
        if self._try is not None:
            self._try.upstream.cancel()
            self._end_try()
        source = (self._plan.source if self._plan is not None else "") or "the default"
        if self._head_sent:
            self.record.flag = "UT"
            self.record.detail = detail
            self._down.reset(detail)
            self._finish()
            return
        self._give_up(504, "UT", f"{detail} ({source})")

    # --- the response

    def _give_up(self, status: int, flag: str, detail: str) -> None:
        if self._not_retried:
            flag, detail = f"{flag},UO", f"{detail}; not tried again: {self._not_retried}"
        elif flag in ("UF", "UR", "UC") and self.record.tries > 1:
            flag = f"{flag},URX"
        source = self._plan.source if self._plan is not None else ""
        self._answer(answer(status, flag=flag, detail=detail, source=source))

    def _answer(self, response: Answer) -> None:
        if response.flag != "-":
            self.record.flag = response.flag
        self.record.detail = response.detail
        if response.status >= 400 and is_grpc(self.record.request.headers):
            fields = failure_headers(response.status, response.detail)
            response = replace(response, status=200, headers=fields, body=b"")
        body = b"" if self.record.request.method == "HEAD" else response.body
        headers = [*response.headers, ("content-length", str(len(response.body)))]
        self._send_head(
            ResponseHead(
                status=response.status,
                reason="",
                headers=headers,
                framing=Framing.LENGTH,
                length=len(response.body),
            )
        )
        if body:
            self.record.response_bytes += len(body)
            self._down.send_data(body)
        self._down.send_end([])
        self._finish()

    def _send_head(self, head: ResponseHead) -> None:
        self._head_sent = True
        self.record.status = head.status
        self.record.response_headers = head.headers
        self._down.send_head(head)

    def _on_data(self, data: bytes) -> None:
        self.record.response_bytes += len(data)
        self._down.send_data(data)

    def _on_end(self, trailers: Headers) -> None:
        self._end_try()
        self.record.trailers = trailers
        self._down.send_end(trailers)
        self._finish()

    def _finish(self) -> None:
        self._done = True
        if self._try is not None:
            self._try.upstream.cancel()
            self._end_try()
        for timer in (self._deadline, self._pause):
            if timer is not None:
                timer.cancel()
        self._replay = None
        self._on_done(self.record)


class _Try:
    """Reports of one try; those of a try that was given up go nowhere."""

    __slots__ = ("_exchange", "blocked", "started", "timer", "upstream")

    upstream: Upstream

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self.timer: Timer | None = None
        self.started = False
        self.blocked = False

    @property
    def _current(self) -> bool:
        return self._exchange._try is self and not self._exchange._done

    def on_response(self, head: ResponseHead) -> None:
        if self._current:
            self.started = True
            self._exchange._on_response(head)

    def on_data(self, data: bytes) -> None:
        if self._current:
            self._exchange._on_data(data)

    def on_end(self, trailers: Headers) -> None:
        if self._current:
            self._exchange._on_end(trailers)

    def on_failure(self, failure: Failure, detail: str) -> None:
        if self._current:
            # A server may close an idle connection just as a request arrives on it (RFC 9112 §9.3.1).
            lost_race = self.upstream.reused and not self.started
            self._exchange._on_failure(failure, detail, lost_race=lost_race)

    def on_request_blocked(self, blocked: bool) -> None:
        if self._current:
            self.blocked = blocked
            if blocked:
                self._exchange._down.pause_request()
            else:
                self._exchange._down.resume_request()

    def on_timeout(self) -> None:
        if self._current:
            self._exchange._on_try_timeout()
