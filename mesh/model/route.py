# SPDX-License-Identifier: Apache-2.0
"""L7 routes of one service, in the one form that every dialect translates to.

A table is an ordered list of rules; the first rule with a match that holds wins.
Each dialect's own precedence (Gateway API: most specific; VirtualService: first in
the list) is applied by its translator, so a proxy only walks the list. Values
that a dialect leaves to a default arrive here filled in.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from mesh.model.destination import RetryBudget
from mesh.model.workload import NamespacedHostname


class PathKind(enum.Enum):
    """How a path is compared."""

    EXACT = "exact"
    PREFIX = "prefix"
    """Plain string prefix (VirtualService)."""
    SEGMENT_PREFIX = "segment_prefix"
    """Prefix of whole segments (Gateway API PathPrefix): `/v2` matches `/v2/x`, not `/v2x`."""
    REGEX = "regex"
    """Full match."""


class ValueKind(enum.Enum):
    """How a header or query value is compared; always case-sensitive."""

    EXACT = "exact"
    PREFIX = "prefix"
    REGEX = "regex"
    PRESENT = "present"


@dataclass(frozen=True, slots=True, kw_only=True)
class PathMatch:
    """A comparison with the request's path, without its query."""

    kind: PathKind
    value: str
    ignore_case: bool = False
    invert: bool = False
    """Holds when the comparison does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueMatch:
    """A comparison with a header (name in lower case) or query parameter (name as is)."""

    name: str
    kind: ValueKind
    value: str = ""
    invert: bool = False
    """Holds when the comparison does not (`withoutHeaders`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestMatch:
    """Comparisons that must all hold; none at all matches every request."""

    path: PathMatch | None = None
    method: ValueMatch | None = None
    authority: ValueMatch | None = None
    headers: tuple[ValueMatch, ...] = ()
    query: tuple[ValueMatch, ...] = ()
    more_paths: tuple[PathMatch, ...] = ()
    """Further comparisons of the path; rewrites look at `path` only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderOperations:
    """Changes to a header list, carried out in the order set, add, remove; names in lower case."""

    set: tuple[tuple[str, str], ...] = ()
    add: tuple[tuple[str, str], ...] = ()
    remove: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.set or self.add or self.remove)


@dataclass(frozen=True, slots=True, kw_only=True)
class PathRewrite:
    """A new path: one of the three is given."""

    full: str | None = None
    """The whole path."""
    prefix: str | None = None
    """In place of the prefix that the match named."""
    regex: str | None = None
    """Whatever of the path matches, everywhere in it, gives way to `substitution`."""
    substitution: str = ""
    """Text in which `\\1` to `\\9` are the groups of `regex`, `\\0` is all that matched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Redirect:
    """An answer that sends the client elsewhere; None keeps that part of the request."""

    scheme: str | None = None
    hostname: str | None = None
    port: int | None = None
    path: PathRewrite | None = None
    status: int = 302


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewrite:
    """What the upstream sees instead of the request's path and authority."""

    path: PathRewrite | None = None
    hostname: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """One weighted destination of a rule."""

    service: NamespacedHostname | None
    """None: the reference is invalid; its share of requests is answered with `problem_status`."""
    port: int = 0
    """Service port, host-order."""
    subset: str = ""
    """Of the service's `DestinationPolicy`; empty: all endpoints. Not defined there: 503 (flag NC)."""
    weight: int = 1
    request_headers: HeaderOperations = field(default_factory=HeaderOperations)
    response_headers: HeaderOperations = field(default_factory=HeaderOperations)
    problem: str = ""
    """Why `service` is None, for the log."""
    problem_status: int = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """When and how often a request is tried again."""

    attempts: int
    """Tries after the first; 0 disables."""
    status_codes: tuple[int, ...] = ()
    grpc_statuses: tuple[int, ...] = ()
    """Of responses without a message, where the status is among the headers."""
    on_connect_failure: bool = True
    on_reset: bool = False
    """The connection or stream ended before a response, or one try's time did."""
    on_refused: bool = False
    """The stream was refused (REFUSED_STREAM): nothing of the request was looked at."""
    on_reset_before_request: bool = False
    """Ended before a byte of the request was sent."""
    other_endpoint: bool = True
    """Choose another endpoint than before, where there is one."""
    backoff_s: float = 0.025
    """Base of the exponential, jittered backoff."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectResponse:
    """An answer of the proxy's own."""

    status: int
    body: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Injected misbehaviour; percentages from 0 to 100, drawn apart, the delay comes first."""

    delay_s: float = 0.0
    delay_percent: float = 0.0
    abort_status: int = 0
    """HTTP status; 0: none."""
    abort_grpc: int | None = None
    """gRPC status, sent with HTTP 200; in place of `abort_status`."""
    abort_percent: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirror:
    """A copy of `percent` (0 to 100) of the requests; its response is dropped."""

    service: NamespacedHostname
    port: int
    subset: str = ""
    percent: float = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cors:
    """Answers preflights and marks responses (Fetch standard, section 3.2)."""

    origins: tuple[ValueMatch, ...]
    """Names are empty; the whole origin is compared."""
    methods: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    expose: tuple[str, ...] = ()
    max_age_s: int | None = None
    credentials: bool = False
    forward_unmatched: bool = False
    """A preflight of another origin goes to the backend; otherwise it is answered without permission."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteRule:
    """Matches (any of which is enough) and what is done with the requests that they take."""

    source: str
    """Object and rule that wrote it, `kind/namespace/name#index`, for logs and `why`."""
    matches: tuple[RequestMatch, ...] = (RequestMatch(),)
    backends: tuple[Backend, ...] = ()
    redirect: Redirect | None = None
    rewrite: Rewrite | None = None
    request_headers: HeaderOperations = field(default_factory=HeaderOperations)
    response_headers: HeaderOperations = field(default_factory=HeaderOperations)
    request_timeout_s: float | None = None
    """Whole request with its retries; None: unlimited."""
    try_timeout_s: float | None = None
    """One try; None: unlimited."""
    retry: Retry | None = None
    direct: DirectResponse | None = None
    fault: Fault | None = None
    mirrors: tuple[Mirror, ...] = ()
    cors: Cors | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteTable:
    """All rules for one service and one of its ports."""

    service: NamespacedHostname
    port: int
    """Service port; 0: every port that has no table of its own."""
    rules: tuple[RouteRule, ...]
    """In the order of precedence; no rule matches: 404."""
    client_namespace: str = ""
    """Only for clients of this namespace, in place of the table for all (consumer route); empty: all."""
    retry_budget: RetryBudget | None = None
    """For all rules together, beside that of the service's `DestinationPolicy`."""
