# SPDX-License-Identifier: Apache-2.0
"""A leaf proves exactly one identity, or nothing."""

from __future__ import annotations

import contextlib

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from mesh.identity.spiffe import IdentityError, SpiffeId
from mesh.identity.verify import MAX_CERTIFICATE_BYTES, peer_identity, require_identity, require_trust_domain
from mesh.testing.fake_ca import FakeCa

CA = FakeCa()
WEB = "spiffe://cluster.local/ns/shop/sa/web"
OTHER = "spiffe://other/ns/x/sa/y"


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def test_one_uri_is_the_identity() -> None:
    assert peer_identity(der(CA.leaf(uris=[WEB]))) == SpiffeId("cluster.local", "shop", "web")


def test_dns_names_beside_it_are_ignored() -> None:
    assert str(peer_identity(der(CA.leaf(uris=[WEB], dns=["web.shop", "evil"])))) == WEB


@pytest.mark.parametrize(
    "uris", [[], [OTHER, WEB], [WEB, OTHER], [WEB, WEB], ["https://web.shop", WEB]], ids=str
)
def test_any_other_number_of_uris_is_refused(uris: list[str]) -> None:
    with pytest.raises(IdentityError, match=f"exactly one URI, it names {len(uris)}"):
        peer_identity(der(CA.leaf(uris=uris, dns=["a"])))


def test_a_leaf_without_names_is_refused() -> None:
    with pytest.raises(IdentityError, match="names 0: none"):
        peer_identity(der(CA.leaf()))


@pytest.mark.parametrize("uri", ["https://web.shop", f"{WEB}/x", "spiffe://cluster.local/workload/web"])
def test_a_uri_of_another_form_is_refused(uri: str) -> None:
    with pytest.raises(IdentityError, match="is not spiffe"):
        peer_identity(der(CA.leaf(uris=[uri])))


def test_an_authority_is_no_workload() -> None:
    with pytest.raises(IdentityError, match="an authority's"):
        peer_identity(der(CA.leaf(uris=[WEB], ca=True)))
    with pytest.raises(IdentityError, match="may sign others"):
        peer_identity(der(CA.leaf(uris=[WEB], cert_sign=True)))
    with pytest.raises(IdentityError, match="may sign others"):
        peer_identity(der(CA.leaf(uris=[WEB], crl_sign=True)))


def test_absent_and_oversized_certificates_are_refused() -> None:
    with pytest.raises(IdentityError, match="no certificate"):
        peer_identity(b"")
    with pytest.raises(IdentityError, match="more than"):
        peer_identity(bytes(MAX_CERTIFICATE_BYTES + 1))
    with pytest.raises(IdentityError, match="cannot be read"):
        peer_identity(bytes(MAX_CERTIFICATE_BYTES))


@given(st.binary(min_size=1, max_size=200))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(IdentityError):
        peer_identity(data)


GOOD = der(CA.leaf(uris=[WEB]))


@pytest.mark.filterwarnings("ignore:Parsed a")
@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255))
def test_a_changed_byte_never_crashes_the_check(index: int, value: int) -> None:
    changed = GOOD[:index] + bytes([value]) + GOOD[index + 1 :]
    with contextlib.suppress(IdentityError):
        assert isinstance(peer_identity(changed), SpiffeId)


def test_require_identity_names_both_sides() -> None:
    expected = {SpiffeId.parse(WEB)}
    assert require_identity(GOOD, expected) in expected
    with pytest.raises(IdentityError, match=f"expected SAN \\({OTHER}\\), got {WEB}"):
        require_identity(GOOD, {SpiffeId.parse(OTHER)})
    with pytest.raises(IdentityError, match="nobody"):
        require_identity(GOOD, ())


def test_require_trust_domain_is_exact() -> None:
    assert require_trust_domain(GOOD, "cluster.local").namespace == "shop"
    for other in ("local", "cluster.local.evil", "cluster", ""):
        with pytest.raises(IdentityError, match="not of the trust domain"):
            require_trust_domain(GOOD, other)
