# SPDX-License-Identifier: Apache-2.0
"""The way to an endpoint: a tunnel to a meshed one, TCP to another; PROXY header and TLS on top of either."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable

from mesh.hbone.metadata import format_baggage, format_forwarded
from mesh.hbone.opener import TunnelOpener
from mesh.hbone.pool import PoolKey
from mesh.model.address import IPAddress, format_host_port
from mesh.model.destination import ClientTls, Keepalive, TlsMode
from mesh.model.workload import Workload
from mesh.net.relay import CountedEnd
from mesh.net.sockets import DialError, Peer, cached_ip, dial, plain_socket, tcp_end
from mesh.state.balance import Random
from mesh.telemetry.reasons import Reason
from waypoint.cluster.host import PLAIN, Address
from waypoint.config import HBONE_PORT
from waypoint.transport.contexts import ClientContexts, require_name, require_protocol
from waypoint.transport.proxy_header import proxy_header
from waypoint.transport.tls_end import TlsEnd


class Dialer:
    """Connects to endpoints; loop thread only."""

    def __init__(
        self,
        opener: TunnelOpener,
        *,
        own: Callable[[], Workload | None],
        identity: str,
        connect_timeout_s: float,
        random: Random,
    ) -> None:
        """Build it.

        Args:
            opener: opens tunnels with this waypoint's identity.
            own: this waypoint's workload, once it is known.
            identity: this waypoint's SPIFFE id.
            connect_timeout_s: of a TCP connection, where the endpoint's policy sets none.
            random: draws from [0, 1).
        """
        self._opener = opener
        self._contexts = ClientContexts()
        self._own = own
        self._identity = identity
        self._connect_timeout_s = connect_timeout_s
        self._random = random

    async def dial(self, endpoint: Address, client: str = "", alpn: str = "") -> CountedEnd:
        """Connect to an endpoint, as its way asks.

        Args:
            endpoint: where to.
            client: the first client's `address:port`, where there is one only.
            alpn: what will be spoken, for TLS.

        Raises:
            DialError: it was not reached, or is not who it should be; says why.
        """
        way = endpoint.way
        if way is PLAIN:
            return await self._connect(endpoint, client)
        tls = way.tls
        if tls is not None and tls.mode is TlsMode.ISTIO_MUTUAL and endpoint.tunnelled:
            tls = None  # HBONE is that.
        context = self._contexts.get(tls, alpn) if tls is not None else None
        end = await self._connect(endpoint, client)
        if way.proxy_protocol and way.client is not None:
            end.write(proxy_header(way.proxy_protocol, way.client, way.target or way.client))
        if tls is None or context is None:
            return end
        return await self._secure(end, tls, context, endpoint, alpn)

    async def _secure(
        self, end: CountedEnd, tls: ClientTls, context: ssl.SSLContext, endpoint: Address, alpn: str
    ) -> TlsEnd:
        name = endpoint.way.sni
        secured = TlsEnd(end, context, name, f"{endpoint.label} (SNI {name or 'none'})")
        timeout_s = endpoint.way.connect_timeout_s or self._connect_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                session = await secured.handshake()
            if tls.subject_alt_names and not tls.insecure:
                require_name(session.getpeercert(), tls.subject_alt_names, endpoint.label)
            require_protocol(session.selected_alpn_protocol(), alpn, endpoint.label)
        except TimeoutError as error:
            why = f"TLS with {endpoint.label}: no handshake within {timeout_s:g} s"
            raise DialError(Reason.TLS_FAILURE, why) from error
        except DialError:
            secured.abort(Reason.TLS_FAILURE)
            raise
        return secured

    async def _connect(self, endpoint: Address, client: str) -> CountedEnd:
        address = endpoint.address if endpoint.address is not None else await self._resolve(endpoint)
        if endpoint.tunnelled:
            return await self._tunnel(endpoint, address, client)
        way = endpoint.way
        timeout_s = way.connect_timeout_s or self._connect_timeout_s
        keepalive = way.keepalive
        sock = await dial(
            plain_socket,
            Peer(address, endpoint.port),
            timeout_s=timeout_s,
            keepalive=True,
            prepare=None if keepalive is None else lambda sock: _set_keepalive(sock, keepalive),
        )
        return await tcp_end(sock)

    async def _tunnel(self, endpoint: Address, address: IPAddress, client: str) -> CountedEnd:
        own = self._own()
        key = PoolKey(
            source_identity=self._identity,
            destination_identities=frozenset((endpoint.workload.identity,)),
            address=address,
            port=HBONE_PORT,
            source_ip=None,
        )
        headers = [(b"x-istio-source", b"waypoint")]
        if own is not None:
            headers.append((b"baggage", format_baggage(own)))
        if client or endpoint.service:
            headers.append((b"forwarded", format_forwarded(client or "unknown", endpoint.service)))
        tunnel, _ = await self._opener.open(
            key, endpoint.asked or format_host_port(address, endpoint.port), headers
        )
        return tunnel

    async def _resolve(self, endpoint: Address) -> IPAddress:
        name = endpoint.workload.hostname
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                found = await asyncio.get_running_loop().getaddrinfo(
                    name, endpoint.port, type=socket.SOCK_STREAM
                )
        except (OSError, TimeoutError) as error:
            why = f"{name} does not resolve: {error or 'no answer in time'}"
            raise DialError(Reason.DNS_FAILURE, why) from error
        if not found:
            raise DialError(Reason.DNS_FAILURE, f"{name} has no address")
        return cached_ip(str(found[int(self._random() * len(found))][4][0]))


def _set_keepalive(sock: socket.socket, wanted: Keepalive) -> None:
    """Set what a policy gives; the rest stays as for every connection."""
    for option, value in (
        (socket.TCP_KEEPIDLE, wanted.time_s),
        (socket.TCP_KEEPINTVL, wanted.interval_s),
        (socket.TCP_KEEPCNT, wanted.probes),
    ):
        if value:
            sock.setsockopt(socket.IPPROTO_TCP, option, max(1, round(value)))
