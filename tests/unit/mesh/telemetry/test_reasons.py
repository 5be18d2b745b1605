# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re

import pytest

from mesh.telemetry.reasons import Reason


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_words_and_a_label(reason: Reason) -> None:
    assert reason.text
    assert re.fullmatch(r"[a-z0-9_]+", str(reason))
    assert (reason.response_flag == "-") == reason.ok


def test_causes_are_not_hidden_behind_connect() -> None:
    """Reference ztunnel reports a peer's 401 and a SAN mismatch as CONNECT."""
    assert Reason.TUNNEL_UNAUTHORIZED.response_flag == "DENY"
    assert Reason.IDENTITY_MISMATCH.response_flag == "IDENTITY_ERROR"
    assert Reason.NO_HEALTHY_UPSTREAM.response_flag == "NO_HEALTHY_UPSTREAM"
    assert Reason.UNKNOWN_SOURCE.response_flag == "UNKNOWN_SOURCE"
