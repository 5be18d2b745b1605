# SPDX-License-Identifier: Apache-2.0
"""Rules as sentences, of policies as the admin port writes them."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from cli.policy_text import rule_text
from mesh.model.policy import Match, ServiceAccountMatch, StringMatch, StringMatchKind
from mesh.runtime.surfaces import plain


def string(value: str, kind: StringMatchKind = StringMatchKind.EXACT) -> StringMatch:
    return StringMatch(kind=kind, value=value)


PRESENCE = string("", StringMatchKind.PRESENCE)


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ((), "everything"),
        (((),), "everything"),
        (((Match(),),), "nothing"),
        (((Match(principals=(string("td/ns/a/sa/b"),)),),), "from td/ns/a/sa/b"),
        (((Match(principals=(string("td/", StringMatchKind.PREFIX),)),),), "from td/*"),
        (((Match(not_principals=(PRESENCE,)),),), "without identity"),
        (
            (
                (Match(namespaces=(string("a"),)), Match(namespaces=(string("b"),))),
                (Match(destination_ports=(80, 81), not_source_ips=(ip_network("10.0.0.0/8"),)),),
            ),
            "from namespace a or from namespace b and not from 10.0.0.0/8, to port 80, 81",
        ),
        (
            ((Match(service_accounts=(ServiceAccountMatch(namespace="a", service_account="b"),)),),),
            "from account a/b",
        ),
    ],
)
def test_what_a_rule_says(rule: object, text: str) -> None:
    assert rule_text(plain(rule)) == text  # type: ignore[arg-type]
