# SPDX-License-Identifier: Apache-2.0
"""What becomes of a request: its token, the policies, the authoriser, the route, in that order.

Most requests are decided at once; one that needs keys or an authoriser is decided by a
coroutine that its exchange waits for. The path that is judged is the path that is forwarded.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial

from mesh.authz.http import Asked
from mesh.identity.spiffe import SpiffeId
from mesh.model.provider import Authoriser
from mesh.model.route import HeaderOperations
from mesh.model.workload import NamespacedHostname
from mesh.net.sockets import DialError
from mesh.runtime.clock import Clock
from mesh.state.balance import Random
from mesh.telemetry.reasons import Reason
from waypoint.filters import tokens
from waypoint.filters.authoriser import Denied, Question, ask
from waypoint.filters.keys import KeyStore
from waypoint.http.message import BadMessageError, Headers, RequestHead
from waypoint.http.path import normalise_path
from waypoint.proxy.call import Open
from waypoint.routing.plan import Answer, Forward, answer, plan_request
from waypoint.routing.rewrite import change_headers
from waypoint.tables import Tables
from waypoint.telemetry import Client, Destination, Telemetry

Waiting = Callable[[], Awaitable[Forward | Answer]]
"""Decides later."""
NO_CLAIMS: Mapping[str, object] = {}


class Decisions:
    """Decides the requests of one tunnel."""

    def __init__(
        self,
        client: Client,
        destination: Destination,
        *,
        tables: Tables,
        telemetry: Telemetry,
        keys: KeyStore,
        checker: tokens.TokenChecker,
        clock: Clock,
        random: Random,
        open_provider: Callable[[Authoriser, bool], Open],
        route: Callable[[RequestHead], Forward | Answer] | None = None,
    ) -> None:
        """Build it; `route` decides those that policies let pass, None: by the destination's routes."""
        self._client = client
        self._destination = destination
        self._tables = tables
        self._telemetry = telemetry
        self._keys = keys
        self._checker = checker
        self._clock = clock
        self._random = random
        self._open_provider = open_provider
        self._route = route or self._route_by_destination
        self._identity = SpiffeId.parse(client.identity) if client.identity else None
        self._service = destination.service.key if destination.service is not None else None

    def decide(self, head: RequestHead) -> Forward | Answer | Waiting:
        """Decide a request, or say who decides it later."""
        try:
            return self._authenticate(head, final=False)
        except BadMessageError as error:
            return answer(error.status, flag="DPE", detail=error.reason)

    # --- tokens

    def _authenticate(self, head: RequestHead, *, final: bool) -> Forward | Answer | Waiting:
        authentication = self._tables.authentication(self._service)
        if authentication is None:
            return self._authorise(head, NO_CLAIMS)
        if authentication.problem:
            return self._unauthenticated(head, "Jwt is not usable", authentication.problem)
        found = self._checker.check(
            authentication.rules, head, self._keys.get, self._clock.wall(), final=final
        )
        if isinstance(found, tokens.KeysNeeded):
            return partial(self._after_fetch, head, found)
        if isinstance(found, tokens.Refused):
            names = ", ".join(f"RequestAuthentication/{name}" for name in authentication.names)
            return self._unauthenticated(head, found.reason, f"{found.reason}; rules of {names}")
        if found is None:
            tokens.strip_vouched(head, authentication.rules)
            return self._authorise(head, NO_CLAIMS)
        tokens.apply(head, found)
        return self._authorise(head, tokens.policy_claims(found))

    async def _after_fetch(self, head: RequestHead, needed: tokens.KeysNeeded) -> Forward | Answer:
        await self._keys.fetch(needed.rules)
        try:
            decided = self._authenticate(head, final=True)
        except BadMessageError as error:
            return answer(error.status, flag="DPE", detail=error.reason)
        return await decided() if callable(decided) else decided

    def _unauthenticated(self, head: RequestHead, words: str, detail: str) -> Answer:
        challenge = f'Bearer realm="http://{head.authority}{head.target.partition("?")[0]}"'
        return Answer(
            status=401,
            headers=[
                ("content-type", "text/plain"),
                ("www-authenticate", f'{challenge}, error="invalid_token"'),
            ],
            body=words.encode(),
            flag="-",
            detail=detail,
            source="RequestAuthentication",
        )

    # --- policies

    def _authorise(self, head: RequestHead, claims: Mapping[str, object]) -> Forward | Answer | Waiting:
        guard = self._tables.guard(self._service)
        if guard.unusable:
            return self._denial(None, Reason.POLICY_UNKNOWN, guard.unusable)
        if not guard.policies:
            return self._route(head)
        path = head.target.partition("?")[0]
        verdict = guard.policies.judge(
            self._asked(
                method=head.method,
                host=head.authority,
                path=path if path == "*" else normalise_path(path),
                headers=head.headers,
                claims=claims,
            )
        )
        if not verdict.allowed:
            return self._denial(verdict.policy, Reason.POLICY_DENIED, verdict.reason)
        if not verdict.ask:
            return self._route(head)
        provider = self._tables.provider(verdict.ask)
        if provider is None:
            why = (
                f"CUSTOM policy {verdict.policy} asks provider {verdict.ask}, which MeshConfig's "
                "extensionProviders do not define"
            )
            return self._denial(verdict.policy, Reason.POLICY_UNKNOWN, why)
        return partial(self._ask, head, provider)

    def admit_connection(self) -> None:
        """Judge a connection that is not HTTP.

        Raises:
            DialError: denied; says by which policy.
        """
        guard = self._tables.guard(self._service)
        reason, policy, detail = Reason.POLICY_UNKNOWN, None, guard.unusable
        if not detail:
            if not guard.policies:
                return
            verdict = guard.policies.judge(
                self._asked(method="", host="", path="", headers=[], claims=NO_CLAIMS)
            )
            if verdict.allowed and not verdict.ask:
                return
            reason, policy, detail = Reason.POLICY_DENIED, verdict.policy, verdict.reason
        self._telemetry.denied(policy, reason.value)
        raise DialError(reason, detail)

    def _asked(
        self, *, method: str, host: str, path: str, headers: Headers, claims: Mapping[str, object]
    ) -> Asked:
        """Collect what policies may ask; empty texts for a connection that is not HTTP."""
        joined: dict[str, str] = {}
        for name, value in headers:
            joined[name] = f"{joined[name]},{value}" if name in joined else value
        client, destination = self._client, self._destination
        return Asked(
            identity=self._identity,
            source_ip=client.peer.address,
            remote_ip=client.peer.address,
            destination_ip=destination.peer.address,
            port=destination.peer.port,
            method=method,
            host=host,
            path=path,
            headers=joined,
            claims=claims,
        )

    def _denial(self, policy: str | None, reason: Reason, detail: str) -> Answer:
        self._telemetry.denied(policy, reason.value)
        return Answer(
            status=403,
            headers=[("content-type", "text/plain")],
            body=b"RBAC: access denied",
            flag="-",
            detail=detail,
            source=f"AuthorizationPolicy/{policy}" if policy else "AuthorizationPolicy",
        )

    async def _ask(self, head: RequestHead, provider: Authoriser) -> Forward | Answer:
        """Ask an external authoriser and decide by its answer."""
        client, destination = self._client.peer, self._destination
        question = Question(
            head=head,
            source_address=str(client.address),
            source_port=client.port,
            source_principal=self._client.identity,
            destination_address=str(destination.peer.address),
            destination_port=destination.peer.port,
            destination_principal=destination.workload.identity if destination.workload is not None else "",
        )
        found = await ask(provider, question, partial(self._open_provider, provider))
        if isinstance(found, Denied):
            return Answer(
                status=found.status,
                headers=found.headers,
                body=found.body,
                flag="UAEX",
                detail=found.detail,
                source=f"extensionProvider/{provider.name}",
            )
        changes = HeaderOperations(set=tuple(found.set_headers), remove=found.remove_headers)
        head.headers = change_headers(head.headers, changes)
        try:
            plan = self._route(head)
        except BadMessageError as error:
            return answer(error.status, flag="DPE", detail=error.reason)
        if found.response_headers and isinstance(plan, Forward):
            added = HeaderOperations(add=tuple(found.response_headers))
            plan = replace(plan, response_headers=(*plan.response_headers, added))
        return plan

    # --- routes

    def _route_by_destination(self, head: RequestHead) -> Forward | Answer:
        destination, port = self._destination, self._destination.peer.port
        if self._service is None:
            workload = destination.workload
            assert workload is not None
            key = NamespacedHostname(namespace=workload.namespace, hostname=workload.name)
            return plan_request(head, service=key, port=port, matcher=None, random=self._random)
        matcher = self._tables.routes(self._service, port, self._client.namespace)
        return plan_request(head, service=self._service, port=port, matcher=matcher, random=self._random)
