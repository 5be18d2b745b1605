# SPDX-License-Identifier: Apache-2.0
"""Requests to a Kubernetes API server over HTTP, and streams of watch events.

Where the server is and how to prove oneself to it is the official client's business
(in-cluster service account, kubeconfig with certificates, token files or exec plugins);
its generated models are not used, as objects go through `mesh.config.objects`. It takes
half a second and 25 MB to import, so only what opens a cluster imports this module.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiohttp
import yaml
from kubernetes.aio import config as kube_config
from kubernetes.aio.client import Configuration
from kubernetes.aio.client.rest import RESTClientObject

from mesh.config.kube_api import CALL_TIMEOUT_S, AnswerError, ConfigError, UnreachableError, error_of
from mesh.runtime.version import VERSION

CONNECT_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 1.0
IDLE_TIMEOUT_S = 150.0
"""A watch that says nothing for so long is dead: the server sends a bookmark about every minute."""
MAX_EVENT_BYTES = 32 * 1024 * 1024
"""One watch event; the API server's own limit for an object is about 3 MiB."""
_KEEPALIVE_IDLE_S, _KEEPALIVE_EVERY_S, _KEEPALIVE_PROBES = 15, 5, 3


class _Rest(RESTClientObject):  # type: ignore[misc]
    """The official transport, with connections that notice a peer that is gone."""

    def _create_connector(self) -> aiohttp.TCPConnector:
        # Unlimited: each watch holds a connection for as long as it lasts.
        return aiohttp.TCPConnector(limit=0, ssl=self.ssl_context, socket_factory=_socket)


def _socket(info: Any) -> socket.socket:
    family, kind, protocol = info[0], info[1], info[2]
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE_S)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_EVERY_S)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_PROBES)
    return made


Reload = Callable[[], Awaitable[None]]


class KubeClient:
    """One API server; close it. Loop thread only."""

    def __init__(self, configuration: Configuration, reload: Reload | None, user_agent: str) -> None:
        self._configuration = configuration
        self._reload = reload
        self._user_agent = user_agent
        self._rest = _Rest(configuration)
        self.server = str(configuration.host)

    @classmethod
    async def open(cls, kubeconfig: Path | None, *, user_agent: str) -> KubeClient:
        """Read where the API server is: from a kubeconfig file, or from the pod's service account.

        Raises:
            ConfigError: the file or the service account cannot be used.
        """
        configuration = Configuration()
        reload: Reload | None = None
        try:
            if kubeconfig is None:
                kube_config.load_incluster_config(client_configuration=configuration)
            else:
                loader = await kube_config.load_kube_config(
                    config_file=str(kubeconfig), client_configuration=configuration, persist_config=False
                )

                async def reload() -> None:
                    await loader.load_and_set(configuration)

            return cls(configuration, reload, f"{user_agent}/{VERSION}")
        except (kube_config.ConfigException, yaml.YAMLError, OSError, ValueError) as error:
            where = f"kubeconfig {kubeconfig}" if kubeconfig else "the pod's service account"
            advice = "" if kubeconfig else "; outside a cluster name a kubeconfig file"
            raise ConfigError(f"{where} cannot be used: {error}{advice}") from error

    async def close(self) -> None:
        """Close every connection."""
        session = self._rest.pool_manager
        if session is not None and session.connector is not None:
            # Without TLS's farewell: a server that is away would let us wait for its own.
            await session.connector.close(abort_ssl=True)
        await self._rest.close()

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
        """Make one request (see `KubeApi.call`)."""
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=min(timeout_s, CONNECT_TIMEOUT_S))
        try:
            response = await self._send(method, _url(path, query), body, content_type, accept, timeout)
            try:
                data = await response.read()
            finally:
                response.release()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UnreachableError(f"{self.server} does not answer: {_text(error)}") from error
        if response.status >= 300:
            raise _refusal(response, data)
        return self._decode(data)

    async def events(
        self, path: str, query: Mapping[str, str], *, accept: str = "application/json"
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the events of one watch (see `KubeApi.events`)."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=IDLE_TIMEOUT_S)
        url = _url(path, {**query, "watch": "1"})
        try:
            response = await self._send("GET", url, None, "application/json", accept, timeout)
            try:
                if response.status >= 300:
                    raise _refusal(response, await response.read())
                async for line in _lines(response.content.iter_any()):
                    yield self._decode(line)
            finally:
                await _drop(response)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UnreachableError(f"{self.server} does not answer: {_text(error)}") from error

    async def _send(
        self,
        method: str,
        url: str,
        body: Mapping[str, Any] | None,
        content_type: str,
        accept: str,
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's own, over several phases
    ) -> aiohttp.ClientResponse:
        response = await self._request(method, url, body, content_type, accept, timeout)
        if response.status == 401 and self._reload is not None:
            # A token or exec plugin's answer that has expired since it was read.
            response.release()
            try:
                await self._reload()
            except (kube_config.ConfigException, yaml.YAMLError, OSError, ValueError) as error:
                raise UnreachableError(f"the kubeconfig cannot be read anew: {error}") from error
            response = await self._request(method, url, body, content_type, accept, timeout)
        return response

    async def _request(
        self,
        method: str,
        url: str,
        body: Mapping[str, Any] | None,
        content_type: str,
        accept: str,
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's own, over several phases
    ) -> aiohttp.ClientResponse:
        headers = {"Accept": accept, "Content-Type": content_type, "User-Agent": self._user_agent}
        for setting in (await self._configuration.auth_settings()).values():
            headers[setting["key"]] = setting["value"]
        answer = await self._rest.request(
            method, self.server + url, headers=headers, body=body, _request_timeout=timeout
        )
        response: aiohttp.ClientResponse = answer.response
        return response

    def _decode(self, data: bytes) -> dict[str, Any]:
        try:
            value = json.loads(data)
        except ValueError as error:
            raise UnreachableError(f"{self.server} answers what is no JSON") from error
        if not isinstance(value, dict):
            raise UnreachableError(f"{self.server} answers JSON that is no object")
        return value


async def _drop(response: aiohttp.ClientResponse) -> None:
    """Close a watch's connection and see it closed: one left early has events on the way."""
    protocol = response.connection.protocol if response.connection is not None else None
    closed = protocol.closed if protocol is not None else None
    if protocol is not None:
        protocol.abort()
    response.close()
    if closed is not None:
        await asyncio.wait([closed], timeout=CLOSE_TIMEOUT_S)


def _url(path: str, query: Mapping[str, str] | None) -> str:
    return f"{path}?{urlencode(query)}" if query else path


def _text(error: BaseException) -> str:
    if isinstance(error, aiohttp.ClientPayloadError | aiohttp.ServerDisconnectedError):
        return "the connection broke off"
    return str(error) or type(error).__name__


def _refusal(response: aiohttp.ClientResponse, data: bytes) -> AnswerError:
    try:
        retry_after_s = float(response.headers.get("Retry-After", ""))
    except ValueError:
        retry_after_s = None
    try:
        status = json.loads(data)
    except ValueError:
        status = None
    if not isinstance(status, dict):
        status = {"reason": response.reason, "message": data[:200].decode("utf-8", "replace").strip()}
    return error_of(status, response.status, retry_after_s)


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Cut a stream into its lines; one without an end is not an event."""
    parts: list[bytes] = []
    size = 0
    async for chunk in chunks:
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            line = b"".join((*parts, end))
            parts, size = [], 0
            if line.strip():
                yield line
        parts.append(rest)
        size += len(rest)
        if size > MAX_EVENT_BYTES:
            raise UnreachableError(f"a watch event exceeds {MAX_EVENT_BYTES} bytes")
