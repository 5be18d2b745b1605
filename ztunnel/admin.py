# SPDX-License-Identifier: Apache-2.0
"""The HTTP surfaces of a ztunnel: admin (loopback only), metrics, readiness. As Istio's, path for path.

Reads state and asks workers; the only things that it changes are log levels and, on
request, the process's end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mesh.model.workload import NamespacedHostname
from mesh.runtime.http import BadRequestError, HttpServer, Request, Response, Route, json_response, text
from mesh.runtime.surfaces import plain
from mesh.runtime.version import VERSION
from mesh.telemetry.logging import level_name, set_level
from ztunnel.admin_explain import answer_inbound, answer_outbound
from ztunnel.config import Config
from ztunnel.supervisor import Supervisor


class Admin:
    """Answers the admin port's requests."""

    def __init__(
        self,
        supervisor: Supervisor,
        config: Config,
        *,
        quit_now: Callable[[], None],
        status: Callable[[], object],
    ) -> None:
        self._supervisor = supervisor
        self._config = config
        self._quit = quit_now
        self._status = status

    def server(self) -> HttpServer:
        """Build the server of the admin port."""
        return HttpServer(
            "admin",
            {
                "/": Route(self._index, help="this list"),
                "/config_dump": Route(self._config_dump, help="state, settings and certificates (no keys)"),
                "/connections": Route(self._connections, help="live connections; ?pod=UID for one pod"),
                "/certs": Route(self._certs, help="certificates of this node's identities"),
                "/status": Route(self._show_status, help="node agent, controller, workers"),
                "/explain/outbound": Route(
                    self._explain_outbound,
                    help="what can happen to a connection: ?source=UID&address=IP&port=N",
                ),
                "/explain/inbound": Route(
                    self._explain_inbound,
                    help="what a pod's policies say: ?destination=UID&address=IP&port=N&source_ip=IP"
                    "[&authority=IP:PORT&identity=SPIFFE]",
                ),
                "/logging": Route(
                    self._logging,
                    ("GET", "POST"),
                    "log levels; POST ?level=debug, ?level=access=debug, ?reset",
                ),
                "/quitquitquit": Route(self._quitquitquit, ("POST",), "POST: drain and end"),
            },
        )

    async def _index(self, _request: Request) -> Response:
        routes = self.server().routes
        return text("\n".join(f"{path:16} {route.help}" for path, route in routes.items()))

    async def _config_dump(self, _request: Request) -> Response:
        store = self._supervisor.store
        dumps = await self._supervisor.dump()
        return json_response(
            {
                "certificates": self._certificates(),
                "config": plain(self._config),
                "policies": [plain(policy) for policy in store.policies.values()],
                "brokenPolicies": dict(store.broken),
                "services": [plain(service) for service in store.services.values()],
                "stagedServices": _keyed(store.staged()),
                "version": {"version": VERSION},
                "workloadState": {
                    info.uid: {
                        "info": plain(info),
                        "workload": plain(
                            store.find_local(
                                name=info.name,
                                namespace=info.namespace,
                                service_account=info.service_account,
                                node=self._config.data_plane.node_name,
                            )
                        ),
                    }
                    for info in self._supervisor.pods
                },
                "workloads": [plain(workload) for workload in store.workloads.values()],
                "workers": dumps,
            }
        )

    async def _connections(self, request: Request) -> Response:
        pod = request.query.get("pod", "")
        rows: list[object] = []
        for dump in await self._supervisor.dump():
            assert isinstance(dump, dict)
            rows += [
                {**row, "worker_pid": dump["pid"]}
                for row in dump["connections"]
                if not pod or row["pod"] == pod
            ]
        return json_response({"connections": rows, "count": len(rows)})

    async def _certs(self, _request: Request) -> Response:
        return json_response({"certificates": self._certificates()})

    def _certificates(self) -> list[dict[str, object]]:
        held = {certificate.identity: certificate for certificate in self._supervisor.certificates}
        entries: list[dict[str, object]] = []
        for identity in sorted(self._supervisor.identities | held.keys(), key=str):
            certificate = held.get(identity)
            if certificate is None:
                entries.append({"identity": str(identity), "state": "unavailable"})
                continue
            entries.append(
                {
                    "identity": str(identity),
                    "state": "available",
                    "serialNumber": certificate.serial,
                    "validFrom": certificate.not_before_s,
                    "expirationTime": certificate.not_after_s,
                    "certChain": [pem.decode("ascii") for pem in certificate.chain_pem],
                    "rootCerts": certificate.roots_pem.decode("ascii"),
                }
            )
        return entries

    async def _explain_outbound(self, request: Request) -> Response:
        return answer_outbound(self._supervisor.store, request)

    async def _explain_inbound(self, request: Request) -> Response:
        return answer_inbound(self._supervisor.store, request)

    async def _show_status(self, _request: Request) -> Response:
        return json_response(self._status())

    async def _logging(self, request: Request) -> Response:
        if request.method == "POST":
            level, target = _parse_level(request.query, self._config.data_plane.log_level)
            try:
                set_level(level, target)
            except ValueError as error:
                raise BadRequestError(400, f"{error}; use ?level=debug or ?level=access=debug") from error
            self._supervisor.set_log_level(level, target)
        return text(f"current log level is {level_name()}")

    async def _quitquitquit(self, _request: Request) -> Response:
        self._quit()
        return text("shutdown now")


def _parse_level(query: Mapping[str, str], default: str) -> tuple[str, str]:
    if "reset" in query:
        return default, ""
    value = query.get("level", "")
    target, _, level = value.rpartition("=") if "=" in value else value.rpartition(":")
    return level, target


def _keyed(staged: Mapping[NamespacedHostname, tuple[str, ...]]) -> dict[str, list[str]]:
    return {str(key): list(uids) for key, uids in staged.items()}
