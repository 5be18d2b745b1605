# SPDX-License-Identifier: Apache-2.0
"""One try at a host, followed from its start to its end: what it tells of the host."""

from __future__ import annotations

import math
from collections.abc import Callable

from waypoint.cluster.circuit import Circuit
from waypoint.cluster.cluster import Cluster
from waypoint.cluster.host import Host
from waypoint.http.message import Headers, ResponseHead
from waypoint.proxy.streams import Failure

_GRPC_HTTP = (200, 499, 500, 400, 504, 404, 409, 403, 429, 400, 409, 400, 501, 500, 503, 500, 401)
"""HTTP status by gRPC status. Source: Envoy's grpcToHttpStatus."""
_HOSTS_FAULT = (Failure.CONNECT, Failure.REFUSED, Failure.RESET, Failure.PROTOCOL)


class Attempt:
    """The `Watch` of one try."""

    __slots__ = (
        "_answered",
        "_cluster",
        "_cookie",
        "_deadline_s",
        "_grpc",
        "_host",
        "_now",
        "_rated",
        "_started_s",
        "circuit",
    )

    def __init__(
        self,
        cluster: Cluster,
        host: Host,
        now: Callable[[], float],
        started_s: float,
        *,
        grpc: bool,
        deadline_s: float = math.inf,
        cookie: str = "",
    ) -> None:
        """Count the try in.

        Args:
            cluster: whose host it is.
            host: where it goes.
            now: monotonic time.
            started_s: when it begins.
            grpc: whether the status to count is gRPC's.
            deadline_s: one that is given up from then on without an answer timed out.
            cookie: value of a Set-Cookie field to add to the response; empty: none.
        """
        self.circuit: Circuit = cluster.circuit
        self._cluster = cluster
        self._host = host
        self._now = now
        self._grpc = grpc
        self._deadline_s = deadline_s
        self._cookie = cookie
        self._answered = False
        self._rated = False
        self._started_s = started_s
        cluster.begin(host)

    def on_response(self, head: ResponseHead) -> None:
        """Take the head: the latency, and the status unless it comes with the trailers."""
        if head.interim and head.status != 101:
            return
        self._answered = True
        now_s = self._now()
        self._host.observe(now_s - self._started_s, now_s)
        if not self._grpc or head.status != 200:
            self._rate(head.status, now_s)
        else:
            self._rate_grpc(head.headers, now_s)
        if self._cookie:
            head.headers = [*head.headers, ("set-cookie", self._cookie)]

    def on_end(self, trailers: Headers) -> None:
        """Take the trailers: gRPC's status."""
        if self._grpc and not self._rated:
            self._rate_grpc(trailers, self._now())

    def on_over(self, failure: Failure | None) -> None:
        """Count the try out; one that the host did not answer counts against it."""
        self._cluster.end(self._host)
        if failure is None:
            if not self._answered and (now_s := self._now()) >= self._deadline_s:
                self._cluster.failed(self._host, now_s - self._started_s, now_s)
        elif failure in _HOSTS_FAULT:
            now_s = self._now()
            self._cluster.failed(self._host, now_s - self._started_s, now_s)

    def _rate(self, status: int, now_s: float) -> None:
        self._rated = True
        self._cluster.rated(self._host, status, now_s)

    def _rate_grpc(self, fields: Headers, now_s: float) -> None:
        for name, value in fields:
            if name == "grpc-status":
                code = int(value) if value.isdigit() else -1
                self._rate(_GRPC_HTTP[code] if 0 <= code < len(_GRPC_HTTP) else 500, now_s)
                return
