# SPDX-License-Identifier: Apache-2.0
"""One form of SPIFFE id and no other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.identity.spiffe import IdentityError, SpiffeId

PARTS = st.text("abcxyz0189-._", min_size=1, max_size=12).filter(lambda part: part not in (".", ".."))


@given(PARTS, PARTS, PARTS)
def test_parse_undoes_format(trust_domain: str, namespace: str, account: str) -> None:
    identity = SpiffeId(trust_domain, namespace, account)
    assert SpiffeId.parse(str(identity)) == identity
    assert str(identity) == f"spiffe://{identity.principal}"


@given(st.text())
def test_any_text_parses_to_itself_or_is_refused(text: str) -> None:
    try:
        identity = SpiffeId.parse(text)
    except IdentityError:
        return
    assert str(identity) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "spiffe://",
        "cluster.local/ns/a/sa/b",
        "SPIFFE://cluster.local/ns/a/sa/b",
        "spiffe:///ns/a/sa/b",
        "spiffe://Cluster.local/ns/a/sa/b",
        "spiffe://cluster.local/ns/a/sa/b/",
        "spiffe://cluster.local/ns/a/sa/b/c",
        "spiffe://cluster.local/ns//sa/b",
        "spiffe://cluster.local/ns/a/sa/",
        "spiffe://cluster.local/ns/../sa/b",
        "spiffe://cluster.local/ns/./sa/b",
        "spiffe://cluster.local/NS/a/sa/b",
        "spiffe://cluster.local/ns/a/SA/b",
        "spiffe://cluster.local/sa/a/ns/b",
        "spiffe://cluster.local:443/ns/a/sa/b",
        "spiffe://user@cluster.local/ns/a/sa/b",
        "spiffe://cluster.local/ns/a/sa/b?x=1",
        "spiffe://cluster.local/ns/a/sa/b#f",
        "spiffe://cluster.local/ns/a/sa/b%2e",
        "spiffe://cluster.local/ns/a/sa/b\n",
        " spiffe://cluster.local/ns/a/sa/b",
        "spiffe://cluster.local/ns/ä/sa/b",
        "spiffe://spiffe://cluster.local/ns/a/sa/b",
        f"spiffe://{'t' * 256}/ns/a/sa/b",
    ],
)
def test_other_spellings_are_refused(text: str) -> None:
    with pytest.raises(IdentityError):
        SpiffeId.parse(text)


def test_length_limits_are_inclusive() -> None:
    assert SpiffeId("t" * 255, "a", "b").trust_domain == "t" * 255
    room = 2048 - len("spiffe://td/ns/a/sa/")
    assert len(str(SpiffeId("td", "a", "b" * room))) == 2048
    with pytest.raises(IdentityError, match="at most 2048"):
        SpiffeId("td", "a", "b" * (room + 1))
