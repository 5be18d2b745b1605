# SPDX-License-Identifier: Apache-2.0
"""What an earlier agent's traces mean."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from daemonset import enroll, recovery
from daemonset.enroll import Step
from daemonset.store import Remembered
from daemonset.worker import recovered_state

POD = Remembered(
    uid="u1",
    namespace="shop",
    name="web",
    service_account="web",
    netns_path="/run/netns/x",
    cookie=4105,
    workload_id=3,
    addresses=(ip_address("10.1.0.5"),),
)


@pytest.mark.parametrize(
    ("lookups", "records", "published", "captured"),
    [
        ({"u1": 4105}, {4105}, {"u1"}, True),
        ({"u1": 4105}, set(), set(), True),
        ({}, {4105}, set(), True),
        ({"u1": 99}, {99}, set(), False),
        ({}, set(), {"u1"}, False),
    ],
)
def test_a_pod_is_captured_by_link_or_record_of_its_own_cookie(
    lookups: dict[str, int], records: set[int], published: set[str], captured: bool
) -> None:
    (found,) = recovery.takeovers({"u1": POD}, lookups=lookups, records=records, published=published)
    assert found.captured is captured
    assert found.published is ("u1" in published)
    assert found.pod("n1").addresses == POD.addresses


@pytest.mark.parametrize("captured", [True, False])
@pytest.mark.parametrize("published", [True, False])
def test_recovered_states_are_valid_and_come_to_both_ends(captured: bool, published: bool) -> None:
    state = recovered_state(captured=captured, published=published)
    enroll.validate(state)
    assert enroll.next_step(state) is not None
    leaving = enroll.apply(state, enroll.Unwanted(gone=True))
    steps = []
    while (ticket := enroll.next_step(leaving)) is not None:
        leaving = enroll.apply(enroll.begin(leaving, ticket), enroll.StepSucceeded(ticket=ticket))
        steps.append(ticket.step)
    assert leaving.forgotten
    assert (Step.RELEASE_OUT in steps) is captured
    assert (Step.WITHDRAW in steps) is published


def test_a_pod_that_was_in_the_mesh_and_lost_its_pins_is_captured_first() -> None:
    assert recovered_state(captured=False, published=True).closed


def test_orphans_are_what_no_known_pod_answers_for() -> None:
    found = recovery.orphans(
        known_uids={"u1"}, known_cookies={1}, lookups={"u1", "u2"}, records={1, 2, 3}, published={"u1", "u3"}
    )
    assert found == recovery.Orphans(records=(2, 3), lookups=("u2",), published=("u3",))
    assert found
    assert not recovery.Orphans()
