# SPDX-License-Identifier: Apache-2.0
"""CreateCertificate over gRPC: token, node authoriser, signature, answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

from mesh.identity.token import TokenClaims, TokenError
from mesh.proto import ca_pb2
from mesh.runtime.clock import Clock

# After mesh.identity, which silences gRPC's own log.
import grpc  # isort: skip

from controller.authenticate import UncheckedError
from controller.ca.authorise import NotAllowedError, Tenants, authorise
from controller.ca.issue import Authority, CsrError, sign_workload
from controller.metrics import Metrics

SERVICE = "istio.v1.auth.IstioCertificateService"
MIN_TTL_S = 60.0
_log = logging.getLogger("controller.ca")


class CertificateService:
    """Answers signing requests; holds no state of its own."""

    def __init__(
        self,
        *,
        authority: Authority,
        authenticate: Callable[[Any], Awaitable[TokenClaims]],
        tenants: Callable[[], Tenants],
        trust_domain: str,
        ztunnels: frozenset[str],
        max_ttl_s: float,
        metrics: Metrics,
        clock: Clock,
        synced: asyncio.Event,
    ) -> None:
        self._authority = authority
        self._authenticate = authenticate
        self._tenants = tenants
        self._trust_domain = trust_domain
        self._ztunnels = ztunnels
        self._max_ttl_s = max_ttl_s
        self._metrics = metrics
        self._clock = clock
        self._synced = synced

    def handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        """Return what is added to a gRPC server."""
        method = grpc.unary_unary_rpc_method_handler(
            self._create,
            request_deserializer=ca_pb2.IstioCertificateRequest.FromString,
            response_serializer=ca_pb2.IstioCertificateResponse.SerializeToString,
        )
        return grpc.method_handlers_generic_handler(SERVICE, {"CreateCertificate": method})

    async def _create(
        self,
        request: ca_pb2.IstioCertificateRequest,
        context: grpc.aio.ServicerContext[ca_pb2.IstioCertificateRequest, ca_pb2.IstioCertificateResponse],
    ) -> ca_pb2.IstioCertificateResponse:
        try:
            claims = await self._authenticate(context.invocation_metadata())
        except TokenError as error:
            await self._refuse(
                context, grpc.StatusCode.UNAUTHENTICATED, "token", f"{context.peer()}: {error}"
            )
        except UncheckedError as error:
            await self._refuse(context, grpc.StatusCode.UNAVAILABLE, "unchecked", str(error))
        # Which pods run where is not known before the first snapshot.
        await self._synced.wait()
        asked = request.metadata.fields.get("ImpersonatedIdentity")
        try:
            identity = authorise(
                claims,
                asked.string_value if asked is not None else "",
                self._tenants(),
                self._trust_domain,
                self._ztunnels,
            )
            wanted_s = float(request.validity_duration) or self._max_ttl_s
            ttl_s = min(max(wanted_s, MIN_TTL_S), self._max_ttl_s)
            chain = sign_workload(
                self._authority, request.csr, identity, ttl_s=ttl_s, now_s=self._clock.wall()
            )
        except NotAllowedError as error:
            await self._refuse(context, grpc.StatusCode.PERMISSION_DENIED, "identity", str(error))
        except CsrError as error:
            await self._refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "csr", str(error))
        self._metrics.issued.inc()
        _log.info("certificate for %s to %s on %s, %.0f s", identity, claims.subject, claims.node, ttl_s)
        return ca_pb2.IstioCertificateResponse(cert_chain=chain)

    async def _refuse(
        self, context: grpc.aio.ServicerContext[Any, Any], code: grpc.StatusCode, reason: str, detail: str
    ) -> NoReturn:
        self._metrics.refused.labels(reason).inc()
        _log.warning("certificate refused: %s", detail)
        await context.abort(code, detail)
