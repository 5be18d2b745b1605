# SPDX-License-Identifier: Apache-2.0
"""The admin port's `/explain/outbound` and `/explain/inbound`: what would happen, with the live state.

Parses questions and writes answers; the answers are `resolve.explain`'s.
"""

from __future__ import annotations

from collections.abc import Mapping

from mesh.identity.spiffe import IdentityError, SpiffeId
from mesh.model.address import IPAddress, parse_ip
from mesh.model.workload import Workload
from mesh.runtime.http import BadRequestError, Request, Response, json_response
from mesh.state.store import Store
from ztunnel.resolve.decide import Reject, Upstream
from ztunnel.resolve.explain import explain_inbound, explain_outbound


def answer_outbound(store: Store, request: Request) -> Response:
    """Answer `?source=WORKLOAD_UID&address=IP&port=N`.

    Raises:
        BadRequestError: a part is missing or wrong, or the workload is not known.
    """
    query = request.query
    source = _workload(store, query, "source")
    view = explain_outbound(store, source, _address(query, "address"), _port(query))
    return json_response(
        {
            "source": source.uid,
            "service": str(view.service.key) if view.service is not None else None,
            "endpoints": [
                {**_described(e.workload), "port": e.port, "whyNot": e.why_not} for e in view.endpoints
            ],
            "outcomes": [{"share": o.share, **_result(o.result)} for o in view.outcomes],
        }
    )


def answer_inbound(store: Store, request: Request) -> Response:
    """Answer `?destination=WORKLOAD_UID&address=IP&port=N&source_ip=IP[&authority=A][&identity=SPIFFE]`.

    Raises:
        BadRequestError: a part is missing or wrong, or the workload is not known.
    """
    query = request.query
    local = _workload(store, query, "destination")
    identity = None
    if query.get("identity"):
        try:
            identity = SpiffeId.parse(query["identity"])
        except (IdentityError, ValueError) as error:
            raise BadRequestError(400, f"identity: {error}") from error
    view = explain_inbound(
        store,
        local,
        dialled=_address(query, "address"),
        port=_port(query),
        authority=query.get("authority", ""),
        identity=identity,
        source_ip=_address(query, "source_ip"),
    )
    return json_response(
        {
            "destination": local.uid,
            "address": str(view.address) if view.address is not None else None,
            "port": view.port,
            "allowed": view.allowed,
            "reason": view.reason.value,
            "detail": view.detail,
            "policy": view.policy,
            "dryRun": list(view.dry_run),
            "policies": list(view.policies),
        }
    )


def _result(result: Upstream | Reject) -> dict[str, object]:
    workload = _described(result.workload) if result.workload is not None else None
    if isinstance(result, Reject):
        return {
            "kind": "reject",
            "reason": result.reason.value,
            "detail": result.detail,
            "workload": workload,
        }
    return {
        "kind": result.kind.value,
        "address": str(result.address) if result.address is not None else result.hostname,
        "port": result.port,
        "authority": result.authority,
        "identities": sorted(result.identities),
        "workload": workload,
    }


def _described(workload: Workload) -> dict[str, object]:
    return {
        "uid": workload.uid,
        "namespace": workload.namespace,
        "name": workload.name,
        "node": workload.node,
        "identity": workload.identity,
        "addresses": [str(address) for address in workload.addresses],
        "hbone": workload.tunnel_protocol.value == "hbone",
        "ready": workload.healthy,
    }


def _workload(store: Store, query: Mapping[str, str], name: str) -> Workload:
    uid = query.get(name, "")
    try:
        return store.workloads[uid]
    except KeyError:
        raise BadRequestError(404, f"{name}: no workload {uid!r} is known here") from None


def _address(query: Mapping[str, str], name: str) -> IPAddress:
    try:
        return parse_ip(query.get(name, ""))
    except ValueError as error:
        raise BadRequestError(400, f"{name}: {error}") from error


def _port(query: Mapping[str, str]) -> int:
    text = query.get("port", "")
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 65536):
        raise BadRequestError(400, f"port: {text!r} is no port")
    return int(text)
