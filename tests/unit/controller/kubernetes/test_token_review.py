# SPDX-License-Identifier: Apache-2.0
"""What a TokenReview proves, how long it is believed, and what it means that none can be had."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import pytest

from controller.authenticate import UncheckedError
from controller.kubernetes import token_review
from controller.kubernetes.token_review import BAD_S, GOOD_S, TokenReviewer
from mesh.identity.token import TokenError
from tests.support.fake_kube import FakeKube

NOW_S = 1_700_000_000.0


class Clock:
    def __init__(self) -> None:
        self.passed_s = 0.0

    def monotonic(self) -> float:
        return 50.0 + self.passed_s

    def wall(self) -> float:
        return NOW_S + self.passed_s


def token(name: str = "t", expires_in_s: float | None = 3600) -> str:
    body = {"jti": name} | ({} if expires_in_s is None else {"exp": NOW_S + expires_in_s})
    return "h." + base64.urlsafe_b64encode(json.dumps(body).encode()).decode().rstrip("=") + ".s"


def status(**changes: Any) -> dict[str, Any]:
    prefix = "authentication.kubernetes.io/"
    extra = {f"{prefix}pod-name": ["z-1"], f"{prefix}pod-uid": ["u1"], f"{prefix}node-name": ["n1"]}
    user = {"username": "system:serviceaccount:istio-system:ztunnel", "uid": "sa1", "extra": extra}
    return {"authenticated": True, "audiences": ["istio-ca"], "user": user} | changes


def call(text: str) -> list[tuple[str, str]]:
    return [("user-agent", "x"), ("authorization", f"Bearer {text}")]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def api() -> FakeKube:
    return FakeKube()


@pytest.fixture
def reviewer(api: FakeKube, clock: Clock) -> TokenReviewer:
    return TokenReviewer(api, clock)


async def test_a_pods_token_tells_account_pod_and_node(api: FakeKube, reviewer: TokenReviewer) -> None:
    api.reviews[token()] = status()
    claims = await reviewer.check(call(token()))
    assert claims.subject == "system:serviceaccount:istio-system:ztunnel"
    assert (claims.pod_name, claims.pod_uid, claims.node) == ("z-1", "u1", "n1")
    assert (claims.service_account_uid, claims.expires_at_s) == ("sa1", NOW_S + 3600)
    assert api.bodies[0]["spec"] == {"token": token(), "audiences": ["istio-ca"]}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (
            {"authenticated": False, "error": "token has expired"},
            "does not accept the token: token has expired",
        ),
        ({}, "does not accept the token: not valid"),
        (status(authenticated="yes"), "does not accept the token"),
        (status(audiences=["https://kubernetes.default.svc"]), "not for the audience istio-ca"),
        (status(audiences=None), "not for the audience istio-ca"),
        (status(user={"username": "admin"}), "of admin, not of a service account"),
        (status(user={"username": "system:serviceaccount:only"}), "not of a service account"),
        (
            status(user={"username": "system:serviceaccount:shop:web"}),
            "token of shop/web names no pod-name; it must be a projected one",
        ),
    ],
)
async def test_what_proves_nothing_is_refused_with_its_reason(
    api: FakeKube, reviewer: TokenReviewer, answer: dict[str, Any], reason: str
) -> None:
    api.reviews[token()] = answer
    with pytest.raises(TokenError, match=reason):
        await reviewer.check(call(token()))


async def test_a_token_without_node_is_refused(api: FakeKube, reviewer: TokenReviewer) -> None:
    answer = status()
    del answer["user"]["extra"]["authentication.kubernetes.io/node-name"]
    api.reviews[token()] = answer
    with pytest.raises(TokenError, match=r"names no node-name; .* Kubernetes 1\.30"):
        await reviewer.check(call(token()))


async def test_calls_without_a_usable_token_ask_nobody(api: FakeKube, reviewer: TokenReviewer) -> None:
    for metadata in (None, [], [("authorization", "Basic eA==")], call("x" * 20_000)):
        with pytest.raises(TokenError):
            await reviewer.check(metadata)
    assert api.requests == []


async def test_answers_are_remembered_for_their_time(
    api: FakeKube, reviewer: TokenReviewer, clock: Clock
) -> None:
    api.reviews[token("good")] = status()
    for _ in range(3):
        await reviewer.check(call(token("good")))
        with pytest.raises(TokenError):
            await reviewer.check(call(token("bad")))
    assert len(api.requests) == 2
    clock.passed_s = BAD_S + 1
    with pytest.raises(TokenError):
        await reviewer.check(call(token("bad")))
    await reviewer.check(call(token("good")))
    assert len(api.requests) == 3
    clock.passed_s = GOOD_S + 1
    await reviewer.check(call(token("good")))
    assert len(api.requests) == 4


@pytest.mark.parametrize(("expires_in_s", "asked"), [(10, 2), (None, 3), (-5, 3)])
async def test_nothing_is_remembered_beyond_the_tokens_end(
    api: FakeKube, reviewer: TokenReviewer, clock: Clock, expires_in_s: float | None, asked: int
) -> None:
    text = token(expires_in_s=expires_in_s)
    api.reviews[text] = status()
    await reviewer.check(call(text))
    await reviewer.check(call(text))
    clock.passed_s = 11
    await reviewer.check(call(text))
    assert len(api.requests) == asked


async def test_calls_at_the_same_time_are_one_review(api: FakeKube, reviewer: TokenReviewer) -> None:
    api.reviews[token()] = status()
    await asyncio.gather(*(reviewer.check(call(token())) for _ in range(50)))
    assert len(api.requests) == 1
    assert reviewer._locks == {}


async def test_what_is_remembered_is_bounded(
    api: FakeKube, reviewer: TokenReviewer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_review, "MAX_KNOWN", 3)
    for number in range(4):
        api.reviews[token(str(number))] = status()
        await reviewer.check(call(token(str(number))))
    await reviewer.check(call(token("3")))
    assert len(api.requests) == 4
    await reviewer.check(call(token("0")))
    assert len(api.requests) == 5


async def test_an_api_server_in_the_way_is_not_the_callers_fault(
    api: FakeKube, reviewer: TokenReviewer
) -> None:
    api.reviews[token()] = status()
    api.down = True
    with pytest.raises(UncheckedError, match="cannot be checked now"):
        await reviewer.check(call(token()))
    api.down = False
    await reviewer.check(call(token()))
