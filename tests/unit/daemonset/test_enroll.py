# SPDX-License-Identifier: Apache-2.0
"""The enrolment state machine: orders, failures, and that any order of events converges."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemonset import enroll
from daemonset.codes import Code
from daemonset.enroll import Enrollment, Step


class Driver:
    """Does steps in a pretended world: `world` holds what exists, as the steps make and remove it."""

    def __init__(self, state: Enrollment) -> None:
        self.state = state
        self.world: set[Step] = set(state.footprint)
        self.trace: list[Step] = []
        self.had = False
        """ztunnel has the pod."""
        self.listeners = False
        """Its listeners are in the table; they leave it with the record (`NodeMaps.unenroll`)."""
        self.ticket: enroll.Ticket | None = None

    def event(self, event: enroll.Event) -> None:
        self.state = enroll.apply(self.state, event)
        enroll.validate(self.state)

    def start(self) -> bool:
        ticket = enroll.next_step(self.state)
        if ticket is None:
            return False
        self.state = enroll.begin(self.state, ticket)
        enroll.validate(self.state)
        self.ticket = ticket
        self.trace.append(ticket.step)
        return True

    def finish(self, *, succeed: bool = True, leaves_something: bool = True) -> None:
        ticket = self.ticket
        assert ticket is not None
        self.ticket = None
        if ticket.step in enroll.GENTLE_ORDER and (succeed or leaves_something):
            self.world.add(ticket.step)
        if ticket.step in enroll.UNDOES and succeed:
            self.world.discard(enroll.UNDOES[ticket.step])
            if ticket.step is Step.RETRACT:
                self.world.discard(Step.LISTEN)
            if ticket.step is Step.RELEASE_OUT:
                self.listeners = False
        if ticket.step is Step.OFFER and succeed:
            # ztunnel opens listeners only for a pod that it does not have.
            self.listeners = self.listeners or not self.had
            self.had = True
        if ticket.step is Step.RETRACT and succeed:
            self.had = self.listeners = False
        if ticket.step is Step.FORGET and succeed:
            self.world.discard(Step.PROVE)
        if succeed:
            self.event(enroll.StepSucceeded(ticket=ticket))
        else:
            self.event(enroll.StepFailed(ticket=ticket, code=Code.LOOKUP_FAILED, reason="as told"))

    def run(self) -> None:
        for _ in range(200):
            if self.ticket is not None:
                self.finish()
            elif self.state.failure is not None:
                self.event(enroll.RetryDue())
            elif not self.start():
                return
        raise AssertionError(f"no end in sight: {self.trace[-20:]}")


def connected(**changes: object) -> Enrollment:
    return replace(Enrollment(session=1), **changes)  # type: ignore[arg-type]


def test_a_running_pod_is_captured_only_when_its_listeners_are_open() -> None:
    driver = Driver(connected())
    driver.run()
    assert driver.trace == list(enroll.GENTLE_ORDER)
    assert driver.trace.index(Step.LISTEN) < driver.trace.index(Step.CAPTURE_IN)
    assert driver.state.enrolled


def test_a_starting_pod_is_captured_before_anything_else() -> None:
    driver = Driver(connected(closed=True))
    driver.run()
    assert driver.trace == list(enroll.CLOSED_ORDER)
    assert driver.state.enrolled


def test_without_ztunnel_a_running_pod_stays_as_it_is() -> None:
    driver = Driver(Enrollment())
    driver.run()
    assert driver.trace == [Step.PROVE, Step.ROUTE]
    assert not driver.state.captured


def test_without_ztunnel_a_starting_pod_is_captured_and_not_announced() -> None:
    driver = Driver(Enrollment(closed=True))
    driver.run()
    assert driver.state.captured
    assert Step.PUBLISH not in driver.trace


def test_leaving_undoes_in_the_order_that_keeps_hbone_served() -> None:
    driver = Driver(connected())
    driver.run()
    driver.trace.clear()
    driver.event(enroll.Unwanted())
    driver.run()
    assert driver.trace == [*enroll.RELEASE_ORDER, Step.FORGET]
    assert driver.state.forgotten
    assert not driver.world


def test_a_pod_that_has_ended_leaves_without_grace() -> None:
    driver = Driver(connected())
    driver.run()
    driver.trace.clear()
    driver.event(enroll.Unwanted(gone=True))
    driver.run()
    assert Step.GRACE not in driver.trace
    assert driver.state.forgotten


def test_a_new_ztunnel_gets_the_pod_again_and_capture_stays() -> None:
    driver = Driver(connected())
    driver.run()
    driver.trace.clear()
    driver.event(enroll.ZtunnelDisconnected())
    driver.run()
    assert driver.trace == []
    assert driver.state.captured
    assert not driver.state.enrolled
    driver.event(enroll.ZtunnelConnected(session=2))
    driver.run()
    assert driver.trace == [Step.OFFER, Step.LISTEN]
    assert driver.state.enrolled


def test_an_acknowledgement_of_an_earlier_ztunnel_does_not_count() -> None:
    driver = Driver(
        connected(done=frozenset({Step.PROVE, Step.ROUTE}), footprint=frozenset({Step.PROVE, Step.ROUTE}))
    )
    assert driver.start()
    driver.event(enroll.ZtunnelDisconnected())
    driver.event(enroll.ZtunnelConnected(session=2))
    driver.finish()
    assert Step.OFFER not in driver.state.done
    driver.run()
    assert driver.state.enrolled
    assert driver.trace.count(Step.OFFER) == 2


def test_changed_addresses_are_proven_and_written_again_without_a_gap() -> None:
    driver = Driver(connected())
    driver.run()
    driver.trace.clear()
    driver.event(enroll.Wanted(changed=True))
    assert driver.state.captured
    driver.run()
    assert driver.trace == [Step.PROVE, Step.CAPTURE_OUT, Step.PUBLISH]


def test_a_proof_of_older_addresses_does_not_count() -> None:
    driver = Driver(connected())
    assert driver.start()
    driver.event(enroll.Wanted(changed=True))
    driver.finish()
    assert Step.PROVE not in driver.state.done


def test_half_captured_becomes_captured_even_when_ztunnel_is_lost() -> None:
    driver = Driver(connected())
    while driver.start():
        if driver.trace[-1] is Step.CAPTURE_IN:
            driver.event(enroll.ZtunnelDisconnected())
            driver.finish()
            break
        driver.finish()
    driver.run()
    assert driver.state.captured


def test_failures_back_off_to_a_limit_and_name_their_step() -> None:
    driver = Driver(connected())
    delays = []
    for _ in range(12):
        assert driver.start()
        driver.finish(succeed=False)
        failure = driver.state.failure
        assert failure is not None
        assert failure.step is Step.PROVE
        assert enroll.next_step(driver.state) is None
        delays.append(failure.delay_s)
        driver.event(enroll.RetryDue())
    assert delays[:3] == [0.25, 0.5, 1.0]
    assert delays[-1] == enroll.RETRY_MAX_S
    assert delays == sorted(delays)


def test_a_failed_offer_is_tried_at_once_when_a_ztunnel_connects() -> None:
    state = connected(
        closed=False, done=frozenset({Step.PROVE, Step.ROUTE}), footprint=frozenset({Step.PROVE, Step.ROUTE})
    )
    driver = Driver(state)
    assert driver.start()
    driver.finish(succeed=False)
    assert driver.state.failure is not None
    driver.event(enroll.ZtunnelConnected(session=2))
    assert driver.state.failure is None


def test_a_pod_whose_listeners_are_missing_is_offered_again() -> None:
    driver = Driver(connected())
    while driver.start():
        if driver.trace[-1] is Step.LISTEN:
            driver.finish(succeed=False)
            break
        driver.finish()
    driver.trace.clear()
    driver.run()
    assert driver.trace[:2] == [Step.OFFER, Step.LISTEN]
    assert driver.state.enrolled


def test_a_failure_of_the_way_in_does_not_delay_the_way_out() -> None:
    driver = Driver(connected())
    assert driver.start()
    driver.finish(succeed=False)
    driver.event(enroll.Unwanted())
    assert driver.start()
    assert driver.trace[-1] is Step.FORGET


def test_a_pod_wanted_again_while_it_is_released_gets_listeners_that_count() -> None:
    driver = Driver(connected())
    driver.run()
    driver.event(enroll.Unwanted())
    driver.trace.clear()
    while driver.trace[-1:] != [Step.RELEASE_OUT]:
        assert driver.start()
        driver.finish()
    driver.event(enroll.Wanted())
    driver.run()
    assert driver.trace[4:6] == [Step.RETRACT, Step.OFFER]
    assert driver.state.enrolled
    assert driver.listeners


def test_a_failing_release_of_a_pod_wanted_again_waits_between_tries() -> None:
    driver = Driver(connected())
    driver.run()
    driver.event(enroll.Unwanted(gone=True))
    while driver.trace[-1:] != [Step.RELEASE_OUT]:
        assert driver.start()
        if driver.trace[-1] is not Step.RELEASE_OUT:
            driver.finish()
    driver.event(enroll.Wanted())
    driver.finish(succeed=False)
    assert driver.state.failure is not None
    driver.run()
    assert driver.state.enrolled


def test_recovered_pods_stay_captured_while_each_step_is_done_again() -> None:
    footprint = frozenset(enroll.GENTLE_ORDER)
    driver = Driver(connected(closed=True, footprint=footprint))
    while driver.start():
        assert driver.state.captured
        driver.finish()
    assert driver.trace == list(enroll.CLOSED_ORDER)
    assert driver.state.enrolled


def test_the_driver_may_start_only_what_was_asked_for() -> None:
    wrong = enroll.Ticket(step=Step.PUBLISH, revision=0, session=1)
    with pytest.raises(enroll.TransitionError, match="PUBLISH"):
        enroll.begin(connected(), wrong)
    with pytest.raises(enroll.TransitionError, match="PUBLISH"):
        enroll.apply(connected(), enroll.StepSucceeded(ticket=wrong))


ACTIONS = st.sampled_from(
    ["start", "succeed", "fail", "fail_clean", "retry", "want", "change", "leave", "gone", "up", "down"]
)


@settings(max_examples=400, deadline=None)
@given(
    closed=st.booleans(),
    actions=st.lists(ACTIONS, max_size=60),
    wanted=st.booleans(),
    reconnect=st.booleans(),
)
def test_any_order_of_events_converges(
    *, closed: bool, actions: list[str], wanted: bool, reconnect: bool
) -> None:
    driver = Driver(Enrollment(closed=closed))
    session = 0
    for action in actions:
        match action:
            case "start":
                driver.start()
            case "succeed" | "fail" | "fail_clean":
                if driver.ticket is not None:
                    driver.finish(succeed=action == "succeed", leaves_something=action == "fail")
            case "retry":
                driver.event(enroll.RetryDue())
            case "want" | "change":
                driver.event(enroll.Wanted(changed=action == "change"))
            case "leave" | "gone":
                driver.event(enroll.Unwanted(gone=action == "gone"))
            case "up":
                session += 1
                driver.had = driver.listeners = False
                driver.event(enroll.ZtunnelConnected(session=session))
            case "down":
                driver.event(enroll.ZtunnelDisconnected())
        if driver.state.forgotten:
            assert not driver.world
            return
        # What exists is never more than what the state admits may exist.
        assert driver.world <= driver.state.footprint
        if not driver.state.unwinding:
            assert not (Step.CAPTURE_OUT in driver.world and Step.CAPTURE_IN not in driver.world)
        assert not (Step.PUBLISH in driver.state.done and Step.CAPTURE_IN not in driver.world)
    if reconnect or not driver.state.session:
        driver.had = driver.listeners = False
        driver.event(enroll.ZtunnelConnected(session=session + 1))
    driver.event(enroll.Wanted() if wanted else enroll.Unwanted())
    driver.run()
    if wanted:
        assert driver.state.enrolled
        assert driver.listeners
        assert driver.world == set(enroll.GENTLE_ORDER)
    else:
        assert driver.state.forgotten
        assert not driver.world


@settings(max_examples=200, deadline=None)
@given(
    actions=st.lists(
        st.sampled_from(["start", "succeed", "fail", "retry", "change", "up", "down"]), max_size=60
    )
)
def test_a_captured_pod_stays_captured_until_it_is_unwanted(actions: list[str]) -> None:
    driver = Driver(connected(closed=True, footprint=frozenset({Step.CAPTURE_IN, Step.CAPTURE_OUT})))
    session = 1
    for action in actions:
        match action:
            case "start":
                driver.start()
            case "succeed" | "fail":
                if driver.ticket is not None:
                    driver.finish(succeed=action == "succeed")
            case "retry":
                driver.event(enroll.RetryDue())
            case "change":
                driver.event(enroll.Wanted(changed=True))
            case "up":
                session += 1
                driver.event(enroll.ZtunnelConnected(session=session))
            case "down":
                driver.event(enroll.ZtunnelDisconnected())
        assert {Step.CAPTURE_IN, Step.CAPTURE_OUT} <= driver.world
