# SPDX-License-Identifier: Apache-2.0
"""Reading a URL for the waypoint itself: through the mesh where its host is a service of it."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from urllib.parse import urlsplit

from mesh.model.workload import NamespacedHostname
from waypoint.filters.keys import FetchError
from waypoint.http.message import Framing, RequestHead
from waypoint.proxy.call import CallError, Open, call
from waypoint.proxy.pool import Pool
from waypoint.proxy.pool2 import Http2Pool
from waypoint.tables import Tables
from waypoint.upstreams import Upstreams, why_none

MAX_BYTES = 1024 * 1024
_OK = 200


def begin_own(
    tables: Tables, upstreams: Upstreams, pool: Pool | Http2Pool, key: NamespacedHostname, port: int
) -> Open:
    """Begin a request of the waypoint's own to an endpoint of a service."""
    service = tables.service(key)
    endpoint, why = None, f"service {key} is not known"
    if service is not None:
        endpoint = upstreams.choose(service, port, frozenset())
        why = why_none(tables, service, port) if endpoint is None else ""
    return lambda events: pool.open(endpoint, why, events)


class Fetcher:
    """Reads small documents; loop thread only."""

    def __init__(self, tables: Tables, upstreams: Upstreams, pool: Pool, namespace: str) -> None:
        self._tables = tables
        self._upstreams = upstreams
        self._pool = pool
        self._namespace = namespace

    async def fetch(self, url: str, timeout_s: float) -> str:
        """Return the text at a URL.

        Raises:
            FetchError: no answer, not 200, too large, or no text; says why.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise FetchError(f"{url!r} is no http or https URL")
        try:
            if parts.scheme == "http":
                begin = self._through_mesh(parts.hostname, parts.port or 80)
                if begin is not None:
                    return await self._call(begin, url, timeout_s)
            async with asyncio.timeout(timeout_s):
                return await asyncio.to_thread(_read, url, timeout_s)
        except TimeoutError as error:
            raise FetchError(f"{url}: no answer within {timeout_s:g} s") from error
        except (CallError, OSError, ValueError) as error:
            raise FetchError(f"{url}: {error}") from error

    def _through_mesh(self, host: str, port: int) -> Open | None:
        service = self._tables.store.find_hostname(host.lower(), self._namespace)
        if service is None:
            return None
        endpoint = self._upstreams.choose(service, port, frozenset())
        why = why_none(self._tables, service, port) if endpoint is None else ""
        return lambda events: self._pool.open(endpoint, why, events)

    async def _call(self, begin: Open, url: str, timeout_s: float) -> str:
        parts = urlsplit(url)
        head = RequestHead(
            method="GET",
            target=(parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
            authority=parts.netloc,
            headers=[("accept", "application/json")],
            framing=Framing.NONE,
        )
        found = await call(begin, head, b"", timeout_s=timeout_s, max_answer_bytes=MAX_BYTES)
        if found.status != _OK:
            raise CallError(f"it answered {found.status}")
        return found.body.decode()


def _read(url: str, timeout_s: float) -> str:
    # The scheme was checked: http or https, certificates verified by the system's roots.
    with urllib.request.urlopen(url, timeout=timeout_s) as response:  # noqa: S310
        data: bytes = response.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES} bytes")
    return data.decode()
