# SPDX-License-Identifier: Apache-2.0
"""What an authority answers is taken only when it is what was asked for."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from mesh.identity.certificate import WorkloadCertificate, from_response
from mesh.identity.csr import new_key_and_csr
from mesh.identity.spiffe import IdentityError, SpiffeId
from mesh.testing.fake_ca import FakeCa

WEB = SpiffeId("cluster.local", "shop", "web")
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
NOW_S = NOW.timestamp()


@pytest.fixture
def ca() -> FakeCa:
    return FakeCa(now=NOW)


def answer(ca: FakeCa, *, identity: SpiffeId = WEB) -> tuple[bytes, list[str]]:
    key_pem, csr_pem = new_key_and_csr(identity)
    return key_pem, ca.sign(csr_pem)


@pytest.mark.parametrize("intermediate", [False, True])
def test_a_good_answer_becomes_a_certificate(intermediate: bool) -> None:
    ca = FakeCa(now=NOW, intermediate=intermediate)
    key_pem, chain = answer(ca)
    certificate = from_response(WEB, key_pem, chain, NOW_S)
    assert certificate.identity == WEB
    assert len(certificate.chain_pem) == 1 + intermediate
    assert certificate.roots_pem == ca.roots_pem
    assert certificate.key_pem == key_pem
    assert certificate.not_after_s == NOW_S + 86_400
    assert certificate.not_before_s < NOW_S
    assert int(certificate.serial, 16) > 0


def test_several_roots_in_the_last_element_are_all_kept(ca: FakeCa) -> None:
    newer = FakeCa("newer", now=NOW)
    ca.extra_roots_pem = newer.root.pem
    key_pem, chain = answer(ca)
    assert from_response(WEB, key_pem, chain, NOW_S).roots_pem == ca.root.pem + newer.root.pem


def test_it_expires_at_its_end_and_not_before(ca: FakeCa) -> None:
    key_pem, chain = answer(ca)
    certificate = from_response(WEB, key_pem, chain, NOW_S)
    assert not certificate.expired(certificate.not_after_s - 0.001)
    assert certificate.expired(certificate.not_after_s)


def test_its_repr_does_not_show_the_key(ca: FakeCa) -> None:
    key_pem, chain = answer(ca)
    certificate = from_response(WEB, key_pem, chain, NOW_S)
    assert isinstance(certificate, WorkloadCertificate)
    assert "PRIVATE" not in repr(certificate)


def test_too_few_elements_are_refused(ca: FakeCa) -> None:
    key_pem, chain = answer(ca)
    for short in ([], chain[:1]):
        with pytest.raises(IdentityError, match=f"answered {len(short)} certificates"):
            from_response(WEB, key_pem, short, NOW_S)


def test_no_pem_is_refused(ca: FakeCa) -> None:
    key_pem, chain = answer(ca)
    for broken in (["x", chain[1]], [chain[0], "x"], [chain[0], ""]):
        with pytest.raises(IdentityError, match="no PEM chain"):
            from_response(WEB, key_pem, broken, NOW_S)


def test_another_identity_is_refused(ca: FakeCa) -> None:
    key_pem, chain = answer(ca, identity=SpiffeId("cluster.local", "shop", "cart"))
    with pytest.raises(
        IdentityError, match=r"certified spiffe://cluster.local/ns/shop/sa/cart, asked for was"
    ):
        from_response(WEB, key_pem, chain, NOW_S)


def test_another_key_is_refused(ca: FakeCa) -> None:
    with pytest.raises(IdentityError, match="another key"):
        from_response(WEB, answer(ca)[0], answer(ca)[1], NOW_S)


def test_a_chain_that_does_not_lead_to_the_roots_is_refused(ca: FakeCa) -> None:
    key_pem, chain = answer(ca)
    stranger = FakeCa("fake root", now=NOW)
    with pytest.raises(IdentityError, match="leads to none of its 1 roots"):
        from_response(WEB, key_pem, [chain[0], stranger.roots_pem.decode()], NOW_S)


def test_a_broken_chain_is_refused() -> None:
    ca = FakeCa(now=NOW, intermediate=True)
    key_pem, chain = answer(ca)
    stranger = FakeCa(now=NOW, intermediate=True)
    with pytest.raises(IdentityError, match="out of order or broken"):
        from_response(WEB, key_pem, [chain[0], stranger.intermediates[0].pem.decode(), chain[2]], NOW_S)


def test_an_expired_certificate_is_refused(ca: FakeCa) -> None:
    key_pem, chain = answer(ca)
    with pytest.raises(IdentityError, match="expired 0 s ago"):
        from_response(WEB, key_pem, chain, NOW_S + 86_400)


def test_a_certificate_from_the_future_is_refused(ca: FakeCa) -> None:
    key_pem, chain = answer(ca)
    with pytest.raises(IdentityError, match="valid only in 60 s: compare this machine's clock"):
        from_response(WEB, key_pem, chain, NOW_S - 180)
    first_second = NOW_S - 120
    assert from_response(WEB, key_pem, chain, first_second).not_before_s == first_second
