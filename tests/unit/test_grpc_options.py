# SPDX-License-Identifier: Apache-2.0
"""gRPC ignores options that it does not know: each that we set must be one of its own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from grpc._cython import cygrpc

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("mesh", "controller", "ztunnel", "waypoint", "cli")
LIBRARY = Path(cygrpc.__file__).read_bytes()
SET = sorted(
    {
        (name, str(path.relative_to(ROOT)))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for name in re.findall(r'\("(grpc\.[a-z0-9_.]+)",', path.read_text())
    }
)


def test_options_are_found() -> None:
    assert any(name == "grpc.keepalive_time_ms" for name, _ in SET)


@pytest.mark.parametrize(("name", "path"), SET)
def test_an_option_is_known_to_the_library(name: str, path: str) -> None:
    assert name.encode() + b"\0" in LIBRARY, f"{path} sets {name}, which gRPC does not read"
