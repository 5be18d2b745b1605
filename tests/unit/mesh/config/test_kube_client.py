# SPDX-License-Identifier: Apache-2.0
"""What needs no server: how a stream is cut into events, what an error says, where the server is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mesh.config import kube_client
from mesh.config.kube_api import ConfigError, UnreachableError, error_of
from mesh.config.kube_client import KubeClient


async def cut(*chunks: bytes) -> list[bytes]:
    async def stream() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    return [line async for line in kube_client._lines(stream())]


async def test_events_are_lines_however_they_are_chunked() -> None:
    whole = b'{"a":1}\n{"b":2}\n\n{"c":3}\n'
    expected = [b'{"a":1}', b'{"b":2}', b'{"c":3}']
    assert await cut(whole) == expected
    assert await cut(*(whole[i : i + 1] for i in range(len(whole)))) == expected
    assert await cut(whole[:5], whole[5:11], whole[11:]) == expected


async def test_half_an_event_at_the_end_is_none() -> None:
    assert await cut(b'{"a":1}\n{"b":') == [b'{"a":1}']


async def test_an_event_larger_than_the_limit_ends_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube_client, "MAX_EVENT_BYTES", 10)
    assert await cut(b"0123456789\n") == [b"0123456789"]
    with pytest.raises(UnreachableError, match="exceeds 10 bytes"):
        await cut(b"01234", b"567890", b"\n")


def test_an_error_says_what_the_server_said() -> None:
    error = error_of({"code": 410, "reason": "Expired", "message": "too old"}, 500)
    assert (str(error), error.expired) == ("410 Expired: too old", True)
    assert str(error_of({}, 503)) == "503 error"


async def test_a_kubeconfig_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"kubeconfig {tmp_path}/none cannot be used"):
        await KubeClient.open(tmp_path / "none", user_agent="test")
    (tmp_path / "bad").write_text("clusters: [")
    with pytest.raises(ConfigError, match="bad cannot be used"):
        await KubeClient.open(tmp_path / "bad", user_agent="test")


async def test_outside_a_cluster_it_says_to_name_a_kubeconfig(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ConfigError, match="outside a cluster name a kubeconfig"):
        await KubeClient.open(None, user_agent="test")
