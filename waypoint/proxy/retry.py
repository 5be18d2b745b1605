# SPDX-License-Identifier: Apache-2.0
"""Which ends of a try a policy wants tried again. Pure; how often and when is the exchange's.

Source: Envoy's router filter, `x-envoy-retry-on` and `x-envoy-retry-grpc-on`.
"""

from __future__ import annotations

from mesh.model.route import Retry
from waypoint.http.message import ResponseHead
from waypoint.proxy.streams import Failure


def retries_failure(retry: Retry, failure: Failure, *, lost_race: bool) -> bool:
    """Return whether a try that failed is worth another one.

    Args:
        retry: the policy.
        failure: how it ended; a refused one was surely not acted on, so counts as a reset as well.
        lost_race: whether its connection was an idle one that ended just then, and the
            method allows to send the request twice (RFC 9112 §9.3.1).
    """
    if failure is Failure.CONNECT:
        return retry.on_connect_failure or retry.on_reset_before_request
    if failure is Failure.REFUSED:
        return retry.on_refused or retry.on_reset
    if failure is Failure.RESET:
        return retry.on_reset or lost_race
    return False


def retries_response(retry: Retry, head: ResponseHead) -> bool:
    """Return whether a response is worth another try, by its status or a gRPC status beside it.

    A gRPC status in trailers comes too late: the message before it was passed on.
    """
    if head.status in retry.status_codes:
        return True
    if not retry.grpc_statuses:
        return False
    for name, value in head.headers:
        if name == "grpc-status":
            return value.isdecimal() and len(value) < 4 and int(value) in retry.grpc_statuses
    return False
