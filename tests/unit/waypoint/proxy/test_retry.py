# SPDX-License-Identifier: Apache-2.0
"""Which ends of a try are tried again under which policy."""

from __future__ import annotations

import pytest

from mesh.model.route import Retry
from tests.support.http2 import response
from waypoint.proxy.retry import retries_failure, retries_response
from waypoint.proxy.streams import Failure

NOTHING = Retry(attempts=1, on_connect_failure=False)


@pytest.mark.parametrize(
    ("policy", "wanted"),
    [
        ({}, set()),
        ({"on_connect_failure": True}, {Failure.CONNECT}),
        ({"on_refused": True}, {Failure.REFUSED}),
        ({"on_reset": True}, {Failure.REFUSED, Failure.RESET}),
        ({"on_reset_before_request": True}, {Failure.CONNECT}),
    ],
)
def test_failures(policy: dict[str, bool], wanted: set[Failure]) -> None:
    retry = Retry(attempts=1, **{"on_connect_failure": False, **policy})  # type: ignore[arg-type]
    assert {failure for failure in Failure if retries_failure(retry, failure, lost_race=False)} == wanted


def test_a_lost_race_needs_no_policy() -> None:
    assert retries_failure(NOTHING, Failure.RESET, lost_race=True)
    assert not retries_failure(NOTHING, Failure.PROTOCOL, lost_race=True)


@pytest.mark.parametrize(
    ("status", "grpc", "expected"),
    [
        (503, None, True),
        (500, None, False),
        (200, "14", True),
        (200, "0", False),
        (200, "-14", False),
        (200, "0" * 5000 + "14", False),
        (200, None, False),
    ],
)
def test_responses(status: int, grpc: str | None, expected: bool) -> None:
    retry = Retry(attempts=1, status_codes=(503,), grpc_statuses=(1, 14))
    head = response(status, [("x", "14")] + ([] if grpc is None else [("grpc-status", grpc)]))
    assert retries_response(retry, head) is expected
    assert retries_response(NOTHING, head) is False
