# SPDX-License-Identifier: Apache-2.0
"""Requests of the CNI socket, read with distrust, and its answers."""

from __future__ import annotations

import json
from ipaddress import ip_address
from typing import Any

import pytest

from daemonset import cni
from daemonset.codes import Code

ADD = {
    "cmd": "ADD",
    "uid": "u1",
    "namespace": "shop",
    "name": "web",
    "netns": "/run/netns/x",
    "ips": ["10.1.0.5/32"],
}


def line(**changes: Any) -> bytes:
    return json.dumps(ADD | changes).encode()


def test_an_add_is_read_with_its_addresses() -> None:
    request = cni.parse_request(line(ips=["10.1.0.5/32", "fd00::5"]))
    assert request.command == "ADD"
    assert request.addresses == (ip_address("10.1.0.5"), ip_address("fd00::5"))


def test_del_needs_no_namespace() -> None:
    request = cni.parse_request(b'{"cmd":"DEL","uid":"u","namespace":"n","name":"p"}')
    assert (request.netns, request.addresses) == ("", ())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (b"", "no JSON"),
        (b"\xff", "no JSON"),
        (b"[]", "no JSON object"),
        (line(cmd="GC"), "'GC'"),
        (line(uid=""), "uid"),
        (line(uid="../../etc"), "uid"),
        (line(name=7), "name"),
        (line(netns="run/netns/x"), "netns"),
        (line(netns=None), "netns"),
        (line(ips="10.1.0.5"), "ips"),
        (line(ips=["ten"]), "ten"),
    ],
)
def test_what_is_no_request_is_refused_by_field(given: bytes, words: str) -> None:
    with pytest.raises(cni.CniRequestError, match=words):
        cni.parse_request(given)


def test_an_error_carries_the_remedy_and_other_answers_only_their_reason() -> None:
    error = json.loads(cni.CniAnswer(result="error", reason="why", code=Code.CNI_TIMEOUT).encode())
    assert error == {"result": "error", "reason": f"why; {Code.CNI_TIMEOUT.remedy}", "code": "AMB2303"}
    plain = json.loads(cni.CniAnswer(result="enrolled").encode())
    assert plain == {"result": "enrolled", "reason": "", "code": ""}


def test_codes_are_unique_and_have_remedies() -> None:
    codes = [code.code for code in Code]
    assert len(set(codes)) == len(codes)
    assert all(code.remedy for code in Code)
