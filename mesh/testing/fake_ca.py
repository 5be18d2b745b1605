# SPDX-License-Identifier: Apache-2.0
"""A certificate authority in memory that signs real certificates, good ones and bad ones.

Made for tests: keys live as long as the object. `issue` answers what a workload would
hold; `leaf` makes any leaf that a test of refusal needs; `FakeCaServer` speaks CreateCertificate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mesh.identity.certificate import WorkloadCertificate, from_response
from mesh.identity.spiffe import SpiffeId
from mesh.proto import ca_pb2

_CLOCK_SKEW = timedelta(minutes=2)


@dataclass(frozen=True, slots=True)
class Issuer:
    """One signing certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    @property
    def pem(self) -> bytes:
        """The certificate as PEM."""
        return self.certificate.public_bytes(Encoding.PEM)


class FakeCa:
    """An authority with one root and, if asked for, one intermediate that signs the leaves."""

    def __init__(
        self, name: str = "fake root", *, intermediate: bool = False, now: datetime | None = None
    ) -> None:
        self._now = now
        self.root = self._issuer(name, None)
        self.intermediates = (self._issuer(f"{name} intermediate", self.root),) if intermediate else ()
        self.extra_roots_pem = b""
        """Further roots that `chain` announces, as during a rotation."""

    @property
    def roots_pem(self) -> bytes:
        """The trust bundle."""
        return self.root.pem + self.extra_roots_pem

    @property
    def now(self) -> datetime:
        """When certificates are issued: the fixed time given, else the machine's."""
        return self._now or datetime.now(UTC)

    def set_time(self, wall_s: float) -> None:
        """Issue as of `wall_s` seconds since the epoch from here on."""
        self._now = datetime.fromtimestamp(wall_s, UTC)

    def issue(self, identity: SpiffeId | str, *, ttl_s: float = 86_400) -> WorkloadCertificate:
        """Make a key and certify it for `identity`."""
        identity = SpiffeId.parse(identity) if isinstance(identity, str) else identity
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = self.leaf(key.public_key(), uris=(str(identity),), ttl_s=ttl_s)
        return from_response(identity, _key_pem(key), self.chain(leaf), self.now.timestamp())

    def sign(self, csr_pem: bytes | str, *, ttl_s: float = 86_400) -> list[str]:
        """Answer a CSR as CreateCertificate does, for whatever URIs it names."""
        request = x509.load_pem_x509_csr(csr_pem.encode() if isinstance(csr_pem, str) else csr_pem)
        sans = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        key = request.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise TypeError("the request's key is not an elliptic-curve key")
        uris = sans.get_values_for_type(x509.UniformResourceIdentifier)
        return self.chain(self.leaf(key, uris=uris, ttl_s=ttl_s))

    def chain(self, leaf: x509.Certificate) -> list[str]:
        """Return leaf, intermediates and the root bundle as PEM, one an element."""
        pems = [
            leaf.public_bytes(Encoding.PEM),
            *(issuer.pem for issuer in self.intermediates),
            self.roots_pem,
        ]
        return [pem.decode() for pem in pems]

    def leaf(
        self,
        key: ec.EllipticCurvePublicKey | None = None,
        *,
        uris: Sequence[str] = (),
        dns: Sequence[str] = (),
        ttl_s: float = 86_400,
        ca: bool = False,
        cert_sign: bool = False,
        crl_sign: bool = False,
        usages: Sequence[x509.ObjectIdentifier] = (
            ExtendedKeyUsageOID.SERVER_AUTH,
            ExtendedKeyUsageOID.CLIENT_AUTH,
        ),
    ) -> x509.Certificate:
        """Sign a leaf with these names; `ca`, `cert_sign` and `crl_sign` make kinds to refuse.

        `usages` are its extended key usages; none leaves the extension out.
        """
        issuer = self.intermediates[0] if self.intermediates else self.root
        now = self.now
        names = [x509.UniformResourceIdentifier(uri) for uri in uris] + [x509.DNSName(name) for name in dns]
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(issuer.certificate.subject)
            .public_key(key or ec.generate_private_key(ec.SECP256R1()).public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _CLOCK_SKEW if ttl_s > 0 else now - timedelta(days=2))
            .not_valid_after(now + timedelta(seconds=ttl_s))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(_key_usage(cert_sign=cert_sign, crl_sign=crl_sign), critical=True)
            .add_extension(_signer(issuer), critical=False)
        )
        if usages:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
        return builder.sign(issuer.key, SHA256())

    def server_pair(self, *dns: str) -> tuple[bytes, bytes]:
        """Return (key, chain) as PEM for a TLS server of these DNS names, e.g. a gRPC server."""
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = self.leaf(key.public_key(), dns=dns or ("localhost",))
        chain = [leaf.public_bytes(Encoding.PEM), *(issuer.pem for issuer in self.intermediates)]
        return _key_pem(key), b"".join(chain)

    def _issuer(self, name: str, parent: Issuer | None) -> Issuer:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(parent.certificate.subject if parent else subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.now - timedelta(days=3))
            .not_valid_after(self.now + timedelta(days=3650))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_key_usage(cert_sign=True, crl_sign=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        if parent is not None:
            builder = builder.add_extension(_signer(parent), critical=False)
        return Issuer(builder.sign(parent.key if parent else key, SHA256()), key)


class FakeCaServer:
    """CreateCertificate over real gRPC and TLS: it certifies whatever is asked for."""

    def __init__(self, ca: FakeCa) -> None:
        self.ca = ca
        self.port = 0
        self.requests: list[ca_pb2.IstioCertificateRequest] = []
        self.metadata: list[Mapping[str, str]] = []
        """Headers of each call."""
        self.refusal: tuple[grpc.StatusCode, str] | None = None
        """What every call is answered while set."""
        self.answer: Callable[[ca_pb2.IstioCertificateRequest], list[str]] = self._sign
        """Makes the chain of an answer."""
        self._server: grpc.aio.Server | None = None

    @property
    def address(self) -> str:
        """`localhost:port`, the name that its certificate has."""
        return f"localhost:{self.port}"

    async def start(self) -> None:
        """Listen on a free loopback port."""
        server = grpc.aio.server()
        handler = grpc.unary_unary_rpc_method_handler(
            self._create,
            request_deserializer=ca_pb2.IstioCertificateRequest.FromString,
            response_serializer=ca_pb2.IstioCertificateResponse.SerializeToString,
        )
        service = "istio.v1.auth.IstioCertificateService"
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {"CreateCertificate": handler}),)
        )
        credentials = grpc.ssl_server_credentials([self.ca.server_pair("localhost")])
        self.port = server.add_secure_port("127.0.0.1:0", credentials)
        await server.start()
        self._server = server

    async def stop(self) -> None:
        """Close the port at once."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    def _sign(self, request: ca_pb2.IstioCertificateRequest) -> list[str]:
        return self.ca.sign(request.csr, ttl_s=request.validity_duration)

    async def _create(
        self,
        request: ca_pb2.IstioCertificateRequest,
        context: grpc.aio.ServicerContext[ca_pb2.IstioCertificateRequest, ca_pb2.IstioCertificateResponse],
    ) -> ca_pb2.IstioCertificateResponse:
        self.requests.append(request)
        headers = context.invocation_metadata() or ()
        self.metadata.append({str(key): str(value) for key, value in headers})
        if self.refusal is not None:
            await context.abort(*self.refusal)
        return ca_pb2.IstioCertificateResponse(cert_chain=self.answer(request))


def _signer(issuer: Issuer) -> x509.AuthorityKeyIdentifier:
    """Say which key signed: strict verifiers (RFC 5280 section 4.2.1.1) ask for it."""
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key())


def _key_usage(*, cert_sign: bool, crl_sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
