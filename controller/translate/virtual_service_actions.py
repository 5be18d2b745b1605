# SPDX-License-Identifier: Apache-2.0
"""What a VirtualService's http route does with a request, apart from where it sends it.

Each reader takes the mapping of one field and raises IllTypedError for what it cannot read.
Source: istio.io/api VirtualService; pilot/pkg/networking/core/route/route.go.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from controller.translate.fields import MAX_PORT, Fields
from controller.translate.regex import regex_problem, substitution_problem
from controller.translate.retry_on import DEFAULT_RETRY_ON, parse_retry_on
from controller.translate.virtual_service_match import read_string_match
from mesh.model.route import (
    Cors,
    DirectResponse,
    Fault,
    HeaderOperations,
    PathRewrite,
    Redirect,
    Retry,
    Rewrite,
    ValueKind,
    ValueMatch,
)

MAX_ATTEMPTS = 1000
REDIRECT_CODES = (301, 302, 303, 307, 308)
FROM_REQUEST_PORT = -1
"""In `Redirect.port`: the port that the client addressed."""
GRPC_STATUSES = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)
_ENVOY_COMMAND = re.compile(r"%[A-Z_]+(\([^)]*\))?%")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What one level (route or destination) changes in a header list; names in lower case."""

    set: Mapping[str, str] = field(default_factory=dict)
    add: Mapping[str, str] = field(default_factory=dict)
    remove: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.set or self.add or self.remove)


def combine_changes(levels: Sequence[Changes], *, as_one: bool) -> HeaderOperations:
    """Return operations with the effect of levels one after the other.

    In a level, what is removed goes first, then `set`, then `add`, as in Envoy. `as_one`: the
    levels are one, as istiod makes of a route and its only destination.
    """
    names = {name for level in levels for name in (*level.set, *level.add, *level.remove)}
    groups = [levels] if as_one else [[level] for level in levels]
    set_, add, remove = [], [], []
    for name in sorted(names):
        # What the field holds; None: what came, and `more` after it.
        value: list[str] | None = None
        more: list[str] = []
        for group in groups:
            if any(name in level.remove for level in group):
                value = []
            for text in (level.set[name] for level in group if name in level.set):
                value = [text]
            for text in (level.add[name] for level in group if name in level.add):
                if value is None:
                    more.append(text)
                else:
                    value.append(text)
        if value is None:
            add += [(name, text) for text in more]
        elif value:
            set_.append((name, ",".join(value)))
        else:
            remove.append(name)
    return HeaderOperations(set=tuple(set_), add=tuple(add), remove=tuple(remove))


def read_headers(fields: Fields) -> tuple[Changes, str, Changes]:
    """Read `headers`: changes of the request, the host that they set, changes of the response."""
    request, host = _changes(fields.child("request"), request=True)
    response, _ = _changes(fields.child("response"), request=False)
    fields.finish()
    return request, host, response


def _changes(fields: Fields, *, request: bool) -> tuple[Changes, str]:
    given = {kind: _pairs(fields, kind) for kind in ("set", "add")}
    remove = {name.lower() for name in fields.strings("remove")}
    host = ""
    for kind in ("add", "set"):  # Where both name the host, `set` wins.
        for name in [name for name in given[kind] if _internal(name)]:
            value = given[kind].pop(name)
            if request and name in ("host", ":authority"):
                host = value
            else:
                fields.report(kind, f"{name} cannot be changed; no effect")
    for name in sorted(filter(_internal, remove)):
        fields.report("remove", f"{name} cannot be removed; no effect")
    fields.finish()
    kept = frozenset(name for name in remove if not _internal(name))
    return Changes(set=given["set"], add=given["add"], remove=kept), host


def _internal(name: str) -> bool:
    return name == "host" or name.startswith(":")


def _pairs(fields: Fields, kind: str) -> dict[str, str]:
    found = {}
    for name, value in fields.string_map(kind).items():
        bare = name.removeprefix(":")
        if _TOKEN.fullmatch(bare) is None or any(character in value for character in "\r\n\0"):
            raise fields.wrong(kind, f"{name[:100]!r} is no valid header field")
        if _ENVOY_COMMAND.search(value):
            fields.report(kind, f"{value[:100]!r} is taken as it stands: waypoints fill in no variables")
        found[name.lower()] = value.replace("%%", "%")
    return found


def read_redirect(fields: Fields) -> Redirect:
    """Read `redirect`; its port may be FROM_REQUEST_PORT."""
    status = fields.integer("redirectCode", 0, 0, 999) or 301
    if status not in REDIRECT_CODES:
        raise fields.wrong("redirectCode", f"must be one of {', '.join(map(str, REDIRECT_CODES))}")
    scheme = fields.choice("scheme", ("", "http", "https"), "") or None
    host, _, inline = fields.text("authority").rpartition(":")
    if not inline.isdigit() or not host:
        host, inline = fields.text("authority"), ""
    port: int | None = fields.integer("port", int(inline or 0) if len(inline) < 6 else 0, 0, MAX_PORT) or None
    derive = fields.choice("derivePort", ("", "FROM_PROTOCOL_DEFAULT", "FROM_REQUEST_PORT"), "")
    if derive and fields.has("port"):
        raise fields.wrong("derivePort", "stands beside port; one of them is allowed")
    if derive == "FROM_REQUEST_PORT":
        port = FROM_REQUEST_PORT
    elif port is None and host:
        port = 443 if scheme == "https" else 80
    uri, prefix = fields.text("uri"), fields.text("prefixRewrite")
    path = PathRewrite(prefix=prefix) if prefix else PathRewrite(full=uri) if uri else None
    fields.finish()
    return Redirect(scheme=scheme, hostname=host or None, port=port, path=path, status=status)


def read_direct(fields: Fields) -> DirectResponse:
    """Read `directResponse`."""
    status = fields.integer("status", 0, 200, 599)
    if not status:
        raise fields.wrong("status", "is missing")
    body = fields.child("body")
    content = body.text("string").encode()
    if body.has("bytes"):
        try:
            content = base64.b64decode(body.text("bytes"), validate=True)
        except (binascii.Error, ValueError) as error:
            raise body.wrong("bytes", f"is no base64: {error}") from error
    body.finish()
    fields.finish()
    return DirectResponse(status=status, body=content)


def read_rewrite(fields: Fields) -> Rewrite:
    """Read `rewrite`; a prefix stands for the prefix of the match, or the whole path."""
    uri, authority = fields.text("uri"), fields.text("authority")
    path = PathRewrite(prefix=uri) if uri else None
    if fields.has("uriRegexRewrite"):
        if uri:
            raise fields.wrong("uriRegexRewrite", "stands beside uri; one of them is allowed")
        child = fields.child("uriRegexRewrite")
        pattern, substitution = child.text("match"), child.text("rewrite")
        if not pattern:
            raise child.wrong("match", "is missing")
        if reason := regex_problem(pattern):
            raise child.wrong("match", reason)
        if reason := substitution_problem(pattern, substitution):
            raise child.wrong("rewrite", reason)
        child.finish()
        path = PathRewrite(regex=pattern, substitution=substitution)
    fields.finish()
    return Rewrite(path=path, hostname=authority or None)


def read_retry(fields: Fields) -> tuple[Retry, float | None]:
    """Read `retries`: when to try again, and the bound on one try in seconds."""
    attempts = fields.integer("attempts", 0, 0, MAX_ATTEMPTS)
    if not fields.has("attempts"):
        fields.report("attempts", "is missing, which is 0: nothing is tried again")
    if fields.has("timeout"):
        reason = "is no field here: perTryTimeout bounds one try, the route's timeout all of them"
        fields.report("timeout", reason, "error")
    if fields.has("retryRemoteLocalities"):
        fields.boolean("retryRemoteLocalities")
        fields.report("retryRemoteLocalities", "waypoints choose among all endpoints that are allowed")
    base_s = fields.duration("backoff")
    retry = Retry(
        attempts=attempts,
        other_endpoint=fields.boolean("retryIgnorePreviousHosts", True),
        backoff_s=0.025 if base_s is None else max(base_s, 0.001),
    )
    retry, problems = parse_retry_on(fields.text("retryOn") or DEFAULT_RETRY_ON, retry)
    for reason in problems:
        fields.report("retryOn", reason)
    try_s = fields.duration("perTryTimeout") or None
    fields.finish()
    return retry, try_s


def read_fault(fields: Fields) -> Fault | None:
    """Read `fault`; a percentage that is not given is 0, as in Istio."""
    delay_s = delay_percent = abort_percent = 0.0
    status, grpc = 0, None
    delay, abort = fields.child("delay"), fields.child("abort")
    if delay:
        given = delay.duration("fixedDelay")
        if given is None:
            raise delay.wrong("fixedDelay", "is missing; it is the one kind of delay there is")
        if given < 0.001:
            raise delay.wrong("fixedDelay", "must be 1ms or more")
        delay_s, delay_percent = given, read_percent(delay, "percentage", "percent", 0.0)
        if not delay.has("percentage") and not delay.has("percent"):
            delay.report("percentage", "is missing, which is 0: nothing is delayed")
        delay.finish()
    if abort:
        status, grpc = _abort(abort)
        abort_percent = read_percent(abort, "percentage", "percent", 0.0)
        if not abort.has("percentage") and not abort.has("percent"):
            abort.report("percentage", "is missing, which is 0: nothing is aborted")
        abort.finish()
    fields.finish()
    if not delay_percent and not abort_percent:
        return None
    return Fault(
        delay_s=delay_s,
        delay_percent=delay_percent,
        abort_status=status,
        abort_grpc=grpc,
        abort_percent=abort_percent,
    )


def _abort(fields: Fields) -> tuple[int, int | None]:
    given = [name for name in ("httpStatus", "grpcStatus") if fields.has(name)]
    if len(given) != 1:
        raise fields.wrong("", "needs either httpStatus or grpcStatus")
    if given == ["httpStatus"]:
        return fields.integer("httpStatus", 0, 200, 599), None
    text = fields.text("grpcStatus")
    if text.isascii() and text.isdigit() and int(text) < len(GRPC_STATUSES):
        return 0, int(text)
    return 0, GRPC_STATUSES.index(fields.choice("grpcStatus", GRPC_STATUSES, ""))


def read_percent(fields: Fields, name: str, old: str, default: float) -> float:
    """Read `{value: 0 to 100}`, or the whole number that older versions had."""
    if fields.has(name):
        child = fields.child(name)
        value = child.number("value", 0.0, 0.0, 100.0)
        child.finish()
        return value
    return float(fields.integer(old, 0, 0, 100)) if fields.has(old) else default


def read_cors(fields: Fields) -> Cors:
    """Read `corsPolicy`."""
    origins = [read_string_match(entry, "") for entry in fields.children("allowOrigins")]
    if not fields.has("allowOrigins"):
        origins = [
            ValueMatch(name="", kind=ValueKind.EXACT, value=origin)
            for origin in fields.strings("allowOrigin")
        ]
    age_s = fields.duration("maxAge")
    unmatched = fields.choice("unmatchedPreflights", ("UNSPECIFIED", "FORWARD", "IGNORE"), "UNSPECIFIED")
    made = Cors(
        origins=tuple(origins),
        methods=fields.strings("allowMethods"),
        headers=fields.strings("allowHeaders"),
        expose=fields.strings("exposeHeaders"),
        max_age_s=None if age_s is None else int(age_s),
        credentials=fields.boolean("allowCredentials"),
        forward_unmatched=unmatched != "IGNORE",
    )
    fields.finish()
    return made
