# SPDX-License-Identifier: Apache-2.0
"""What sources and writers need of a Kubernetes API server: requests, watches, and how they fail.

JSON objects go in and out; who carries them is `mesh.config.kube_client`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Protocol

MERGE_PATCH = "application/merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"
CALL_TIMEOUT_S = 30.0
_GONE = 410


class KubeError(Exception):
    """A request to the API server failed."""


class UnreachableError(KubeError):
    """No answer came, or none that can be read: the network's or the server's fault; retry later."""


class ConfigError(KubeError):
    """Where the API server is cannot be told: the settings' fault; says what to do."""


class AnswerError(KubeError):
    """The server refused, with a status code and a reason."""

    def __init__(self, status: int, reason: str, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(f"{status} {reason}: {message}" if message else f"{status} {reason}")
        self.status = status
        self.reason = reason
        self.retry_after_s = retry_after_s

    @property
    def expired(self) -> bool:
        """Whether the resourceVersion asked for is too old: list anew."""
        return self.status == _GONE


class KubeApi(Protocol):
    """What sources and writers need of an API server; `tests/support/fake_kube.py` is its twin."""

    async def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> dict[str, Any]:
        """Make one request and return its JSON object.

        Raises:
            AnswerError: the server refused.
            UnreachableError: no readable answer within `timeout_s`.
        """
        ...

    def events(
        self, path: str, query: Mapping[str, str], *, accept: str = "application/json"
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the events of one watch until the server ends it.

        Raises:
            AnswerError: the server refused the watch.
            UnreachableError: the connection failed or fell silent.
        """
        ...


def error_of(status: Mapping[str, Any], code: int, retry_after_s: float | None = None) -> AnswerError:
    """Make an error of a `Status` object."""
    number = status.get("code")
    return AnswerError(
        number if isinstance(number, int) else code,
        str(status.get("reason") or "error"),
        str(status.get("message") or "")[:500],
        retry_after_s,
    )


async def gather_pages(
    api: KubeApi, path: str, query: Mapping[str, str], *, accept: str, page: int
) -> tuple[list[Any], dict[str, Any]]:
    """List a collection page by page.

    Returns:
        its items, and the last page's envelope (apiVersion, metadata.resourceVersion).

    Raises:
        KubeError: as `KubeApi.call`; one of `expired` when the pages' snapshot was compacted meanwhile.
    """
    items: list[Any] = []
    token = ""
    while True:
        asked = {**query, "limit": str(page)}
        if token:
            asked["continue"] = token
        answer = await api.call("GET", path, query=asked, accept=accept)
        items += answer.get("items") or []
        metadata = answer.get("metadata") or {}
        token = str(metadata.get("continue") or "")
        if not token:
            return items, answer
        await asyncio.sleep(0)
