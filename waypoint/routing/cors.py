# SPDX-License-Identifier: Apache-2.0
"""Cross-origin permission: answers to preflights, and the fields that responses get.

Source: Fetch standard, section 3.2; Gateway API HTTPCORSFilter.
"""

from __future__ import annotations

from mesh.model.route import Cors, HeaderOperations
from waypoint.http.message import Headers
from waypoint.routing.match import Request, compile_value


def is_preflight(request: Request) -> bool:
    """Whether a browser asks for permission, not for the resource."""
    return (
        request.method == "OPTIONS"
        and "origin" in request.headers
        and "access-control-request-method" in request.headers
    )


def preflight_headers(cors: Cors, request: Request) -> Headers | None:
    """Return the fields of the permission; None: this origin gets none."""
    origin = _allowed_origin(cors, request)
    if origin is None:
        return None
    headers: Headers = [("access-control-allow-origin", origin)]
    if cors.methods:
        methods = ",".join(cors.methods)
        if "*" in cors.methods:
            methods = request.headers["access-control-request-method"]
        headers.append(("access-control-allow-methods", methods))
    if cors.headers:
        names = ",".join(cors.headers)
        if "*" in cors.headers:
            names = request.headers.get("access-control-request-headers", "")
        if names:
            headers.append(("access-control-allow-headers", names))
    if cors.max_age_s is not None:
        headers.append(("access-control-max-age", str(cors.max_age_s)))
    if cors.credentials:
        headers.append(("access-control-allow-credentials", "true"))
    headers.append(("vary", "origin"))
    return headers


def response_operations(cors: Cors, request: Request) -> HeaderOperations:
    """Return what a response to this request gets; nothing for another origin."""
    origin = _allowed_origin(cors, request)
    if origin is None:
        return HeaderOperations()
    fields = [("access-control-allow-origin", origin)]
    if cors.credentials:
        fields.append(("access-control-allow-credentials", "true"))
    if cors.expose:
        fields.append(("access-control-expose-headers", ",".join(cors.expose)))
    return HeaderOperations(set=tuple(fields), add=(("vary", "origin"),))


def _allowed_origin(cors: Cors, request: Request) -> str | None:
    """Return the origin to name: always the caller's own, so that credentials never meet `*`."""
    origin = request.headers.get("origin")
    if origin is None:
        return None
    for allowed in cors.origins:
        if allowed.value == "*" or compile_value(allowed)(origin):
            return origin
    return None
