# SPDX-License-Identifier: Apache-2.0
"""Copies of requests: sent beside the real one, their responses dropped, never waited for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from mesh.model.route import Mirror, Retry
from waypoint.http.message import Headers, ResponseHead
from waypoint.proxy.streams import Failure, Upstream, UpstreamEvents
from waypoint.routing.plan import Forward

Connect = Callable[[Forward, frozenset[str], UpstreamEvents], Upstream]
"""Starts a try: plan, endpoints to avoid if others are there, where to report."""


class Copy:
    """One copy; one that cannot keep up is given up, so that it never slows the real request."""

    def __init__(self, connect: Connect, plan: Forward, mirror: Mirror, limit_bytes: int) -> None:
        self._left = limit_bytes
        self._blocked = False
        self._over = False
        target = replace(
            plan,
            service=mirror.service,
            port=mirror.port,
            subset=mirror.subset,
            retry=Retry(attempts=0),
            mirrors=(),
            copied=True,
        )
        self._upstream = connect(target, frozenset(), self)
        self._upstream.send_head(plan.head)

    def send_data(self, data: bytes) -> None:
        """Copy a piece of the body; what a blocked connection cannot take counts against the limit."""
        if self._over:
            return
        if self._blocked:
            self._left -= len(data)
            if self._left < 0:
                self._over = True
                self._upstream.cancel()
                return
        self._upstream.send_data(data)

    def send_end(self, trailers: Headers) -> None:
        """Complete the copy."""
        if not self._over:
            self._upstream.send_end(trailers)

    # --- UpstreamEvents

    def on_response(self, head: ResponseHead) -> None:
        """Drop it."""

    def on_data(self, data: bytes) -> None:
        """Drop it."""

    def on_end(self, trailers: Headers) -> None:
        """Nothing more to send."""
        self._over = True

    def on_failure(self, failure: Failure, detail: str) -> None:
        """Nothing more to send."""
        self._over = True

    def on_request_blocked(self, blocked: bool) -> None:
        """Remember whether bytes pile up."""
        self._blocked = blocked
