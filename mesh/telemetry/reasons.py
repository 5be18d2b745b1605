# SPDX-License-Identifier: Apache-2.0
"""Why a connection or tunnel ended: one code per way, for log, metric label and admin alike.

A code says whose doing it was, so that a cause is never hidden behind "CONNECT". The
words of one case (addresses, identities, policy) belong to the caller's log line.
"""

from __future__ import annotations

import enum


class Reason(enum.Enum):
    """One per way a connection or tunnel ends; `value` is the metric label and log field."""

    # Ended as both sides wished
    COMPLETE = "complete"
    LOCAL_CLOSE = "local_close"
    DRAINED = "drained"
    GOAWAY = "goaway"
    IDLE_TIMEOUT = "idle_timeout"
    # One side broke it off
    PEER_RESET = "peer_reset"
    PEER_CLOSED = "peer_closed"
    FORCED_CLOSE = "forced_close"
    DRAIN_DEADLINE = "drain_deadline"
    KEEPALIVE_TIMEOUT = "keepalive_timeout"
    IO_ERROR = "io_error"
    # Policy
    POLICY_DENIED = "policy_denied"
    POLICY_REVOKED = "policy_revoked"
    POLICY_UNKNOWN = "policy_unknown"
    # Identity and TLS
    IDENTITY_MISMATCH = "identity_mismatch"
    IDENTITY_INVALID = "identity_invalid"
    CERTIFICATE_UNAVAILABLE = "certificate_unavailable"
    CERTIFICATE_EXPIRED = "certificate_expired"
    CERTIFICATE_REVOKED = "certificate_revoked"
    TLS_FAILURE = "tls_failure"
    # Where it should have gone
    NO_CAPTURE_RECORD = "no_capture_record"
    UNKNOWN_SOURCE = "unknown_source"
    UNKNOWN_DESTINATION = "unknown_destination"
    BAD_AUTHORITY = "bad_authority"
    ILLEGAL_PORT = "illegal_port"
    NO_HEALTHY_UPSTREAM = "no_healthy_upstream"
    WAYPOINT_UNAVAILABLE = "waypoint_unavailable"
    DNS_FAILURE = "dns_failure"
    # Dialling
    CONNECT_REFUSED = "connect_refused"
    CONNECT_TIMEOUT = "connect_timeout"
    CONNECT_UNREACHABLE = "connect_unreachable"
    SOURCE_ADDRESS_UNAVAILABLE = "source_address_unavailable"
    # The tunnel
    TUNNEL_UNAUTHORIZED = "tunnel_unauthorized"
    TUNNEL_UPSTREAM_FAILED = "tunnel_upstream_failed"
    TUNNEL_REFUSED = "tunnel_refused"
    TUNNEL_RESET = "tunnel_reset"
    TUNNEL_TIMEOUT = "tunnel_timeout"
    H2_HANDSHAKE_FAILED = "h2_handshake_failed"
    H2_PROTOCOL_ERROR = "h2_protocol_error"
    H2_FLOW_CONTROL_ERROR = "h2_flow_control_error"
    H2_FLOOD = "h2_flood"
    BAD_REQUEST = "bad_request"
    # Limits of this process
    LIMIT_EXCEEDED = "limit_exceeded"
    INTERNAL_ERROR = "internal_error"

    @property
    def text(self) -> str:
        """What happened, in words that can end a log line."""
        return _TEXT[self]

    @property
    def ok(self) -> bool:
        """Whether the connection ended as its two sides wished; False counts as failed."""
        return self in _OK

    @property
    def response_flag(self) -> str:
        """Label `response_flags` of the TCP metrics: Istio's value, and never a vaguer one than it has.

        Source: ztunnel's `ResponseFlags`; causes for which it has no value keep their own code,
        upper case.
        """
        if self in _OK:
            return "-"
        return _FLAGS.get(self, self.value.upper())

    def __str__(self) -> str:
        return self.value


_OK = frozenset(
    {
        Reason.COMPLETE,
        Reason.LOCAL_CLOSE,
        Reason.DRAINED,
        Reason.GOAWAY,
        Reason.IDLE_TIMEOUT,
        # An application that resets its own connection has had what it wanted of it.
        Reason.PEER_RESET,
    }
)

_FLAGS = {
    Reason.POLICY_DENIED: "DENY",
    Reason.POLICY_REVOKED: "DENY",
    Reason.POLICY_UNKNOWN: "DENY",
    Reason.TUNNEL_UNAUTHORIZED: "DENY",
    Reason.IDENTITY_MISMATCH: "IDENTITY_ERROR",
    Reason.IDENTITY_INVALID: "IDENTITY_ERROR",
    Reason.CERTIFICATE_UNAVAILABLE: "IDENTITY_ERROR",
    Reason.CERTIFICATE_EXPIRED: "TLS_FAILURE",
    Reason.CERTIFICATE_REVOKED: "CERT_REVOKED",
    Reason.TLS_FAILURE: "TLS_FAILURE",
    Reason.H2_HANDSHAKE_FAILED: "H2_HANDSHAKE_FAILURE",
    Reason.CONNECT_REFUSED: "CONNECT",
    Reason.CONNECT_TIMEOUT: "CONNECT",
    Reason.CONNECT_UNREACHABLE: "CONNECT",
    Reason.TUNNEL_UPSTREAM_FAILED: "CONNECT",
    Reason.TUNNEL_REFUSED: "CONNECT",
}

_TEXT = {
    Reason.COMPLETE: "both sides finished",
    Reason.LOCAL_CLOSE: "closed on this side",
    Reason.DRAINED: "finished while draining",
    Reason.GOAWAY: "the peer asked for no more tunnels on this connection",
    Reason.IDLE_TIMEOUT: "closed after being idle",
    Reason.PEER_RESET: "the application's side reset the connection",
    Reason.PEER_CLOSED: "the other side went away before the connection was finished",
    Reason.FORCED_CLOSE: "closed by an operator or by the process's end",
    Reason.DRAIN_DEADLINE: "still open at the drain deadline",
    Reason.KEEPALIVE_TIMEOUT: "the peer did not answer a keepalive ping in time",
    Reason.IO_ERROR: "the socket failed",
    Reason.POLICY_DENIED: "denied by an authorization policy",
    Reason.POLICY_REVOKED: "no longer allowed after a policy or workload change",
    Reason.POLICY_UNKNOWN: "the workload names a policy that is not known yet",
    Reason.IDENTITY_MISMATCH: "the peer has a valid certificate of another identity than the one expected",
    Reason.IDENTITY_INVALID: "the peer's certificate has no single well-formed SPIFFE identity",
    Reason.CERTIFICATE_UNAVAILABLE: "no certificate for the local workload",
    Reason.CERTIFICATE_EXPIRED: "a certificate is past its end",
    Reason.CERTIFICATE_REVOKED: "the peer's certificate is revoked",
    Reason.TLS_FAILURE: "the TLS handshake or session failed",
    Reason.NO_CAPTURE_RECORD: "the connection was not captured by the mesh (a dial of a reserved port?)",
    Reason.UNKNOWN_SOURCE: "the calling workload is not known",
    Reason.UNKNOWN_DESTINATION: "the destination is not known",
    Reason.BAD_AUTHORITY: "the tunnel's authority is not an address and port of this workload",
    Reason.ILLEGAL_PORT: "the destination port belongs to the mesh itself",
    Reason.NO_HEALTHY_UPSTREAM: "no healthy endpoint",
    Reason.WAYPOINT_UNAVAILABLE: "the waypoint has no ready instance",
    Reason.DNS_FAILURE: "the destination's name did not resolve",
    Reason.CONNECT_REFUSED: "connection refused by the destination",
    Reason.CONNECT_TIMEOUT: "the destination did not answer in time",
    Reason.CONNECT_UNREACHABLE: "the destination cannot be reached",
    Reason.SOURCE_ADDRESS_UNAVAILABLE: "the client's address could not be used towards the application",
    Reason.TUNNEL_UNAUTHORIZED: "the peer's policy denied the tunnel (401)",
    Reason.TUNNEL_UPSTREAM_FAILED: "the peer could not reach its application (503)",
    Reason.TUNNEL_REFUSED: "the peer refused the tunnel",
    Reason.TUNNEL_RESET: "the peer reset the tunnel",
    Reason.TUNNEL_TIMEOUT: "the peer did not answer the tunnel request in time",
    Reason.H2_HANDSHAKE_FAILED: "the peer speaks no HTTP/2 on the HBONE port",
    Reason.H2_PROTOCOL_ERROR: "the peer broke the HTTP/2 protocol",
    Reason.H2_FLOW_CONTROL_ERROR: "the peer sent more than its window",
    Reason.H2_FLOOD: "the peer sent more control frames than allowed",
    Reason.BAD_REQUEST: "the tunnel request is malformed",
    Reason.LIMIT_EXCEEDED: "a configured limit is reached",
    Reason.INTERNAL_ERROR: "a fault of this process",
}
