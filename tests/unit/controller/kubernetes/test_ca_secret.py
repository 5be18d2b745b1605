# SPDX-License-Identifier: Apache-2.0
"""The root in a Secret: made once, shared, refused when it is none."""

from __future__ import annotations

import asyncio
import base64
import logging
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from controller.ca.issue import key_pem, new_authority
from controller.ca.store import StoreError
from controller.kubernetes.ca_secret import CHECK_S, RootReplacedError, SecretGuard, open_secret_authority
from mesh.config.kube_api import AnswerError
from tests.support.fake_kube import FakeKube
from tests.support.virtual import run_virtual

SECRETS = "/api/v1/secrets"
NOW_S = 1_700_000_000.0


async def open_(api: FakeKube, now_s: float = NOW_S) -> Any:
    return await open_secret_authority(api, "istio-system", "cluster.local", now_s)


async def test_the_first_replica_makes_it_and_the_others_load_it() -> None:
    api = FakeKube(SECRETS)
    first, second = await open_(api), await open_(api)
    assert first.root_pem == second.root_pem
    assert key_pem(first) == key_pem(second)
    assert api.get(SECRETS, "istio-system", "ambit-ca")["type"] == "Opaque"
    assert [method for method, _ in api.requests] == ["GET", "POST", "GET"]


async def test_of_two_replicas_at_once_the_faster_ones_root_is_everybodys() -> None:
    api = FakeKube(SECRETS)
    real = api._create
    faster: list[Any] = []

    def overtaken(collection: str, namespace: str, body: dict[str, Any]) -> dict[str, Any]:
        if not faster:
            other = new_authority("cluster.local", NOW_S)
            faster.append(other)
            api.put(
                SECRETS,
                "istio-system",
                "ambit-ca",
                data={
                    "root-key.pem": base64.b64encode(key_pem(other)).decode(),
                    "signing-cert.pem": base64.b64encode(other.root_pem).decode(),
                },
            )
        return real(collection, namespace, body)

    api._create = overtaken  # type: ignore[method-assign]
    assert (await open_(api)).root_pem == faster[0].root_pem


async def test_further_roots_are_trusted_too() -> None:
    api = FakeKube(SECRETS)
    await open_(api)
    other = new_authority("cluster.local", NOW_S)
    data = api.get(SECRETS, "istio-system", "ambit-ca")["data"]
    data = {**data, "other-roots.pem": base64.b64encode(other.root_pem).decode()}
    api.put(SECRETS, "istio-system", "ambit-ca", data=data)
    assert other.root_pem in (await open_(api)).bundle_pem


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"root-key.pem": ""}, "Secret istio-system/ambit-ca has no root-key.pem; restore it"),
        ({"signing-cert.pem": None}, "has no signing-cert.pem"),
        ({"root-key.pem": "%%%"}, "Secret istio-system/ambit-ca: not base64"),
        ({"signing-cert.pem": base64.b64encode(b"x").decode()}, "Secret istio-system/ambit-ca: "),
    ],
)
async def test_a_secret_that_is_no_authority_is_named(change: dict[str, Any], reason: str) -> None:
    api = FakeKube(SECRETS)
    await open_(api)
    data = {**api.get(SECRETS, "istio-system", "ambit-ca")["data"], **change}
    api.put(SECRETS, "istio-system", "ambit-ca", data=data)
    with pytest.raises(StoreError, match=reason):
        await open_(api)


async def test_an_expired_root_is_not_signed_with() -> None:
    api = FakeKube(SECRETS)
    await open_(api)
    with pytest.raises(StoreError, match="has expired; delete the Secret"):
        await open_(api, NOW_S + 11 * 365 * 86_400)


async def test_a_refusal_is_the_callers_to_explain() -> None:
    api = FakeKube(SECRETS)
    api.refuse[SECRETS] = AnswerError(403, "Forbidden", "secrets is forbidden")
    with pytest.raises(AnswerError, match="403"):
        await open_(api)


def guarded(after: Callable[[FakeKube], None], checks: int = 3) -> FakeKube:
    """Run a guard over some checks after something happened to the Secret; its failure is raised."""
    api = FakeKube(SECRETS)

    async def test() -> None:
        authority = await open_(api)
        other = new_authority("cluster.local", NOW_S).root_pem
        data = {
            **api.get(SECRETS, "istio-system", "ambit-ca")["data"],
            "other-roots.pem": base64.b64encode(other).decode(),
        }
        api.put(SECRETS, "istio-system", "ambit-ca", data=data)
        authority = await open_(api)
        after(api)
        with suppress(TimeoutError):
            async with asyncio.timeout(CHECK_S[1] * checks):
                await SecretGuard(api, "istio-system", authority, random.Random(1)).run()
        assert (await open_(api)).bundle_pem == authority.bundle_pem

    run_virtual(test)
    return api


def test_a_secret_that_was_deleted_is_written_again_with_the_same_root(
    caplog: pytest.LogCaptureFixture,
) -> None:
    guarded(lambda api: api.delete(SECRETS, "istio-system", "ambit-ca"))
    assert "Secret istio-system/ambit-ca was deleted; it is written again" in caplog.messages


def test_another_authority_in_the_secret_ends_the_process() -> None:
    def replace(api: FakeKube) -> None:
        other = new_authority("cluster.local", NOW_S)
        data = {
            "root-key.pem": base64.b64encode(key_pem(other)).decode(),
            "signing-cert.pem": base64.b64encode(other.root_pem).decode(),
        }
        api.put(SECRETS, "istio-system", "ambit-ca", data=data)

    with pytest.raises(RootReplacedError, match="was changed; start again"):
        guarded(replace)


def test_further_roots_that_come_or_go_end_the_process() -> None:
    def forget(api: FakeKube) -> None:
        data = api.get(SECRETS, "istio-system", "ambit-ca")["data"]
        del data["other-roots.pem"]

    with pytest.raises(RootReplacedError):
        guarded(forget)


@pytest.mark.parametrize("broken", [True, False])
def test_an_outage_or_a_broken_secret_ends_nothing_and_is_told_once(
    broken: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)

    def fault(api: FakeKube) -> None:
        good = api.get(SECRETS, "istio-system", "ambit-ca")["data"]
        if broken:
            api.put(SECRETS, "istio-system", "ambit-ca", data={"root-key.pem": "x"})
        else:
            api.refuse[SECRETS] = AnswerError(500, "InternalError", "etcd is away")
        loop = asyncio.get_running_loop()

        def mend() -> None:
            api.refuse.clear()
            api.put(SECRETS, "istio-system", "ambit-ca", data=good)

        loop.call_later(3 * CHECK_S[1], mend)

    guarded(fault, checks=5)
    (told,) = caplog.messages
    assert told.startswith("the authority's Secret cannot be checked, ours stays in force")
