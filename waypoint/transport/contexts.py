# SPDX-License-Identifier: Apache-2.0
"""TLS contexts for connections that the waypoint originates, from the files that a policy names."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping, Sequence

from mesh.model.destination import ClientTls, TlsMode
from mesh.net.sockets import DialError
from mesh.telemetry.reasons import Reason

MAX_CONTEXTS = 256
_Key = tuple[ClientTls, str, tuple[int, ...]]
_SYSTEM_ROOTS = "system"
"""Istio's word for the machine's own roots."""


class ClientContexts:
    """One context for each policy; a file that changes makes a new one for new connections."""

    def __init__(self) -> None:
        self._made: dict[_Key, ssl.SSLContext] = {}

    def get(self, tls: ClientTls, alpn: str) -> ssl.SSLContext:
        """Return the context of a policy.

        Raises:
            DialError: TLS_FAILURE; a file cannot be used, or the policy asks for what there is not.
        """
        _require_usable(tls)
        files = [file for file in (_roots(tls), tls.certificate_file, tls.key_file) if file]
        try:
            key = (tls, alpn, tuple(os.stat(file).st_mtime_ns for file in files))
            found = self._made.get(key)
            if found is None:
                if len(self._made) >= MAX_CONTEXTS:
                    self._made.clear()
                found = self._made[key] = _make(tls, alpn)
        except (OSError, ssl.SSLError) as error:
            named = getattr(error, "filename", None) or ", ".join(files)
            why = getattr(error, "strerror", None) or error
            raise DialError(Reason.TLS_FAILURE, f"TLS as the policy asks: {named}: {why}") from error
        return found


def _require_usable(tls: ClientTls) -> None:
    why = ""
    if tls.mode is TlsMode.INVALID:
        why = f"the policy's tls cannot be read: {tls.problem}"
    elif tls.credential:
        why = (
            f"credentialName {tls.credential} is not served to waypoints; "
            "mount the secret and name its files (caCertificates, clientCertificate, privateKey)"
        )
    elif tls.mode is TlsMode.ISTIO_MUTUAL:
        why = "ISTIO_MUTUAL is HBONE here, which the endpoint does not speak; enrol its pod in the mesh"
    if why:
        raise DialError(Reason.TLS_FAILURE, why)


def _roots(tls: ClientTls) -> str:
    return "" if tls.ca_file == _SYSTEM_ROOTS else tls.ca_file


def _make(tls: ClientTls, alpn: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=_roots(tls) or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Names of their own take the place of the host's.
    context.check_hostname = not tls.insecure and not tls.subject_alt_names
    if tls.insecure:
        context.verify_mode = ssl.CERT_NONE
    if tls.certificate_file:
        context.load_cert_chain(tls.certificate_file, tls.key_file or None)
    if alpn:
        context.set_alpn_protocols([alpn])
    return context


def require_name(certificate: Mapping[str, object] | None, wanted: Sequence[str], server: str) -> None:
    """Demand that a certificate (`SSLObject.getpeercert`) has one of the names.

    Raises:
        DialError: IDENTITY_MISMATCH; says which names it has.
    """
    entries = (certificate or {}).get("subjectAltName", ())
    names = [str(value) for _, value in entries] if isinstance(entries, tuple) else []
    if not any(_covers(name, each) for name in names for each in wanted):
        raise DialError(
            Reason.IDENTITY_MISMATCH,
            f"{server} has a certificate for {', '.join(names) or 'nobody'}, "
            f"the policy wants {' or '.join(wanted)}",
        )


def require_protocol(chosen: str | None, wanted: str, server: str) -> None:
    """Demand that a server which chose a protocol chose the one that is spoken to it.

    Raises:
        DialError: TLS_FAILURE.
    """
    if wanted and chosen not in (None, wanted):
        raise DialError(Reason.TLS_FAILURE, f"{server} chose {chosen} where {wanted} is spoken")


def _covers(name: str, wanted: str) -> bool:
    if name.startswith("*."):
        first, _, rest = wanted.partition(".")
        return bool(first) and rest.lower() == name[2:].lower()
    return name.lower() == wanted.lower() if "://" not in name else name == wanted
