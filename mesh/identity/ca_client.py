# SPDX-License-Identifier: Apache-2.0
"""The certificate authority's client: Istio's CreateCertificate over gRPC and TLS.

Each call reads the token and the authority's roots anew and opens a channel of its own: calls
are rare, and a projected token or a rotated root takes effect at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import grpc
from google.protobuf import struct_pb2

from mesh.identity.certificate import WorkloadCertificate, from_response
from mesh.identity.channel import headers, secure_channel
from mesh.identity.csr import new_key_and_csr
from mesh.identity.spiffe import IdentityError, SpiffeId
from mesh.proto import ca_pb2
from mesh.runtime.clock import Clock

METHOD = "/istio.v1.auth.IstioCertificateService/CreateCertificate"
DEFAULT_TTL_S = 86_400
CALL_TIMEOUT_S = 10.0


class CaError(Exception):
    """No certificate was had; says from whom, for whom and why. Safe to retry later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaSettings:
    """Where the authority is and how to prove ourselves to it."""

    address: str
    """`host:port`; `https://` in front is allowed."""
    roots: Path
    """PEM bundle that verifies the authority's own server certificate; read on each call."""
    token: Path | None = None
    """File with the bearer token; read on each call. None sends none."""
    cluster_id: str = "Kubernetes"
    server_name: str = ""
    """Name that the server's certificate must have; empty: the host of `address`."""
    impersonate: bool = True
    """Ask on behalf of the workload (a ztunnel does); False: the token is the identity's own."""
    timeout_s: float = CALL_TIMEOUT_S


class CaClient:
    """Makes keys and has them certified; holds nothing between calls."""

    def __init__(self, settings: CaSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock

    async def fetch(self, identity: SpiffeId, ttl_s: int = DEFAULT_TTL_S) -> WorkloadCertificate:
        """Make a key and return the certificate that the authority gives it for `identity`.

        Raises:
            CaError: the token or roots cannot be read (local), the authority cannot be reached,
                refuses, or answers something else than was asked for.
        """
        settings = self._settings
        key_pem, csr_pem = new_key_and_csr(identity)
        request = ca_pb2.IstioCertificateRequest(csr=csr_pem.decode("ascii"), validity_duration=ttl_s)
        if settings.impersonate:
            metadata = struct_pb2.Struct()
            metadata.update({"ImpersonatedIdentity": str(identity)})
            request.metadata.CopyFrom(metadata)
        try:
            chain = await self._call(request)
            return from_response(identity, key_pem, chain, self._clock.wall())
        except grpc.aio.AioRpcError as error:
            raise CaError(
                f"the authority at {settings.address} gave no certificate for {identity}: "
                f"{error.code().name}: {error.details()}"
            ) from error
        except IdentityError as error:
            raise CaError(f"the authority at {settings.address}: {error}") from error
        except (OSError, ValueError) as error:
            raise CaError(f"cannot ask the authority at {settings.address}: {error}") from error

    async def _call(self, request: ca_pb2.IstioCertificateRequest) -> list[str]:
        settings = self._settings
        said = headers(settings.token, settings.cluster_id)
        channel = secure_channel(settings.address, settings.roots, server_name=settings.server_name)
        async with channel:
            method = channel.unary_unary(
                METHOD,
                request_serializer=ca_pb2.IstioCertificateRequest.SerializeToString,
                response_deserializer=bytes,
            )
            data = await method(request, metadata=said, timeout=settings.timeout_s)
        # Parsed here, not by grpc, which would hand over None for an answer that is none.
        return list(ca_pb2.IstioCertificateResponse.FromString(data).cert_chain)
