# SPDX-License-Identifier: Apache-2.0
"""The state machine of one pod's enrolment; pure: events in, the next step out.

The order of the steps is the guarantee. A running pod is offered to ztunnel first and
captured only when its listeners are open, so that no connection is refused on the way
in; a pod that starts, or that was in the mesh before, is captured first, so that none
passes in plain: without listeners capture refuses. HBONE is announced (PUBLISH) last
and withdrawn first. Whatever happens in between, `next_step` leads from what is in
place to what is wanted; the driver (`daemonset.worker`) does the steps, one at a time.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace

from daemonset.codes import Code


class Step(enum.Enum):
    """One thing to do; acquiring steps first, then the releasing ones."""

    PROVE = "prove"
    """Find the pod's network namespace and prove that it owns the pod's addresses."""
    ROUTE = "route"
    """Set the mark route inside the pod (transparent dials' way back)."""
    OFFER = "offer"
    """Hand the namespace to ztunnel and wait for its acknowledgement."""
    LISTEN = "listen"
    """Wait until ztunnel's listeners are in the listener map."""
    CAPTURE_IN = "capture_in"
    """Attach the pod's sk_lookup link."""
    CAPTURE_OUT = "capture_out"
    """Write the pod's enrolment record."""
    PUBLISH = "publish"
    """Tell the controller that the pod takes HBONE."""

    WITHDRAW = "withdraw"
    GRACE = "grace"
    """Let peers hear of the withdrawal while HBONE still works."""
    RELEASE_IN = "release_in"
    """First, since with the record go the listeners: in between, only the pod's own connects are refused."""
    RELEASE_OUT = "release_out"
    RETRACT = "retract"
    UNROUTE = "unroute"
    FORGET = "forget"
    """Close the namespace and drop the pod's file."""


GENTLE_ORDER = (
    Step.PROVE,
    Step.ROUTE,
    Step.OFFER,
    Step.LISTEN,
    Step.CAPTURE_IN,
    Step.CAPTURE_OUT,
    Step.PUBLISH,
)
"""For a pod that runs outside the mesh: listeners before capture."""
CLOSED_ORDER = (
    Step.PROVE,
    Step.CAPTURE_IN,
    Step.CAPTURE_OUT,
    Step.ROUTE,
    Step.OFFER,
    Step.LISTEN,
    Step.PUBLISH,
)
"""For a pod that must not pass anything in plain: capture, which refuses, before listeners."""
RELEASE_ORDER = (
    Step.WITHDRAW,
    Step.GRACE,
    Step.RELEASE_IN,
    Step.RELEASE_OUT,
    Step.RETRACT,
    Step.UNROUTE,
)
UNDOES = {
    Step.WITHDRAW: Step.PUBLISH,
    Step.RELEASE_OUT: Step.CAPTURE_OUT,
    Step.RELEASE_IN: Step.CAPTURE_IN,
    Step.RETRACT: Step.OFFER,
    Step.UNROUTE: Step.ROUTE,
}
_CAPTURE = frozenset({Step.OFFER, Step.CAPTURE_IN, Step.CAPTURE_OUT})
_OF_REVISION = frozenset({Step.PROVE, Step.CAPTURE_OUT, Step.PUBLISH})
_OF_SESSION = frozenset({Step.OFFER, Step.LISTEN})

RETRY_FIRST_S = 0.25
RETRY_MAX_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """A step to do, for one revision of the pod and one ztunnel session."""

    step: Step
    revision: int
    session: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A step that failed and waits for its next try."""

    step: Step
    code: Code
    reason: str
    attempts: int
    """Failures of this step in a row, from 1."""

    @property
    def delay_s(self) -> float:
        """How long to wait before the next try."""
        return min(RETRY_MAX_S, RETRY_FIRST_S * 2.0 ** min(self.attempts - 1, 16))


# Events: what happened.


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The pod belongs into the mesh; `changed`: its addresses or resolvers are others than before."""

    changed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Unwanted:
    """The pod is to leave; `gone`: its processes have ended, so nothing need be waited for."""

    gone: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NetnsReplaced:
    """PROVE found the pod in another namespace than before (a new sandbox): all else is to be done again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ZtunnelConnected:
    """A ztunnel connected; it knows nothing of earlier sessions. Sessions count from 1."""

    session: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ZtunnelDisconnected:
    """No ztunnel is connected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSucceeded:
    """A step came to its end."""

    ticket: Ticket


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFailed:
    """A step failed; what it may have left is still in the footprint."""

    ticket: Ticket
    code: Code
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryDue:
    """The wait after a failure is over."""


Event = (
    Wanted
    | Unwanted
    | NetnsReplaced
    | ZtunnelConnected
    | ZtunnelDisconnected
    | StepSucceeded
    | StepFailed
    | RetryDue
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrollment:
    """What is wanted and what is in place for one pod."""

    wanted: bool = True
    gone: bool = False
    closed: bool = False
    """Capture before listeners (see CLOSED_ORDER)."""
    revision: int = 0
    session: int = 0
    """The ztunnel session, 0 while none is connected."""
    done: frozenset[Step] = field(default_factory=frozenset)
    """Acquiring steps whose result holds now."""
    footprint: frozenset[Step] = field(default_factory=frozenset)
    """Acquiring steps that may have left something: begun and not undone."""
    grace_due: bool = False
    unwinding: bool = False
    """Capture is being undone: goes through to RETRACT even if the pod is wanted again, since with the
    record go the entries of ztunnel's listeners, and only listeners opened anew enter the table again."""
    running: Step | None = None
    failure: Failure | None = None
    last_failed: tuple[Step, int] | None = None
    """The step that failed last and how often in a row; cleared when it succeeds or the wish changes."""
    forgotten: bool = False

    @property
    def enrolled(self) -> bool:
        """Whether all that enrolment consists of is in place."""
        return self.wanted and self.done.issuperset(GENTLE_ORDER)

    @property
    def served(self) -> bool:
        """Whether the pod may start: captured, with listeners; who tells the controller may be late."""
        return self.wanted and (self.done | {Step.PUBLISH}).issuperset(GENTLE_ORDER)

    @property
    def captured(self) -> bool:
        """Whether nothing can leave or enter in plain."""
        return {Step.CAPTURE_IN, Step.CAPTURE_OUT} <= self.footprint


class TransitionError(RuntimeError):
    """An event that cannot happen in this state: a defect of the driver."""


def next_step(state: Enrollment) -> Ticket | None:
    """Return what to do now; None: nothing, or something is running or waited for."""
    if state.running is not None or state.failure is not None or state.forgotten:
        return None
    acquiring = state.wanted and not state.unwinding
    step = _next_acquiring(state) if acquiring else _next_releasing(state)
    if step is None:
        return None
    return Ticket(step=step, revision=state.revision, session=state.session)


def _next_acquiring(state: Enrollment) -> Step | None:
    for step in CLOSED_ORDER if state.closed else GENTLE_ORDER:
        if step in state.done:
            continue
        if step in _OF_SESSION and not state.session:
            return None
        return step
    return None


def _next_releasing(state: Enrollment) -> Step | None:
    order = RELEASE_ORDER if not state.wanted else (Step.RELEASE_IN, Step.RELEASE_OUT, Step.RETRACT)
    for step in order:
        if step is Step.GRACE:
            if state.grace_due and not state.gone:
                return step
        elif UNDOES[step] in state.footprint:
            return step
    return Step.FORGET


def begin(state: Enrollment, ticket: Ticket) -> Enrollment:
    """Note that a step starts; from here on what it makes may exist.

    Raises:
        TransitionError: it is not what `next_step` asked for.
    """
    if ticket != next_step(state):
        raise TransitionError(f"{ticket.step.name} is not the next step of {state}")
    footprint, done = state.footprint, state.done
    if ticket.step in GENTLE_ORDER:
        footprint |= {ticket.step}
    elif ticket.step in UNDOES:
        done -= {UNDOES[ticket.step]}
    # Half captured must become captured, whatever happens to ztunnel.
    closed = state.closed or ticket.step is Step.CAPTURE_IN
    unwinding = state.unwinding or ticket.step in (Step.RELEASE_IN, Step.RELEASE_OUT)
    return replace(
        state, running=ticket.step, footprint=footprint, done=done, closed=closed, unwinding=unwinding
    )


def apply(state: Enrollment, event: Event) -> Enrollment:
    """Return the state after an event.

    Raises:
        TransitionError: an outcome of a step that is not running.
    """
    match event:
        case Wanted(changed=changed):
            return _wanted(state, changed=changed)
        case Unwanted(gone=gone):
            return _unwanted(state, gone=gone)
        case NetnsReplaced():
            # Captured before: capture the new one before anything else too.
            return replace(state, done=frozenset(), closed=state.closed or state.captured)
        case ZtunnelConnected(session=session):
            return _session(state, session)
        case ZtunnelDisconnected():
            return _session(state, 0)
        case RetryDue():
            return replace(state, failure=None)
        case StepSucceeded(ticket=ticket):
            return _succeeded(_ended(state, ticket), ticket)
        case StepFailed(ticket=ticket, code=code, reason=reason):
            return _failed(_ended(state, ticket), ticket, code, reason)


def _wanted(state: Enrollment, *, changed: bool) -> Enrollment:
    if changed:
        state = replace(state, revision=state.revision + 1, done=state.done - _OF_REVISION)
    if changed or not state.wanted:
        state = replace(state, failure=None, last_failed=None)
    return replace(state, wanted=True, gone=False, grace_due=False)


def _unwanted(state: Enrollment, *, gone: bool) -> Enrollment:
    if state.wanted:
        state = replace(state, wanted=False, failure=None, last_failed=None)
    return replace(state, gone=state.gone or gone)


def _session(state: Enrollment, session: int) -> Enrollment:
    failure = state.failure
    if failure is not None and failure.step in _OF_SESSION:
        failure = None
    return replace(state, session=session, done=state.done - _OF_SESSION, failure=failure)


def _ended(state: Enrollment, ticket: Ticket) -> Enrollment:
    if state.running is not ticket.step:
        raise TransitionError(f"{ticket.step.name} ended, but {state.running} is running")
    return replace(state, running=None)


def _succeeded(state: Enrollment, ticket: Ticket) -> Enrollment:
    step = ticket.step
    if state.last_failed is not None and state.last_failed[0] is step:
        state = replace(state, last_failed=None)
    if step is Step.FORGET:
        # Wanted again meanwhile: start over, nothing is in place.
        return replace(
            state, forgotten=not state.wanted, done=frozenset(), footprint=frozenset(), unwinding=False
        )
    if step is Step.GRACE:
        return replace(state, grace_due=False)
    if step in UNDOES:
        undone = {UNDOES[step]}
        if step is Step.RETRACT:
            undone.add(Step.LISTEN)
        closed = state.closed and step is not Step.RELEASE_OUT
        due = state.grace_due or (step is Step.WITHDRAW and not state.wanted)
        left = state.footprint - undone
        return replace(
            state,
            footprint=left,
            done=state.done - undone,
            grace_due=due,
            closed=closed,
            unwinding=state.unwinding and not left.isdisjoint(_CAPTURE),
        )
    stale = (step in _OF_REVISION and ticket.revision != state.revision) or (
        step in _OF_SESSION and ticket.session != state.session
    )
    return state if stale else replace(state, done=state.done | {step})


def _failed(state: Enrollment, ticket: Ticket, code: Code, reason: str) -> Enrollment:
    releasing = ticket.step not in GENTLE_ORDER
    if releasing is (state.wanted and not state.unwinding):
        return state  # The wish changed meanwhile; the failure is of no further interest.
    if ticket.step in _OF_SESSION and ticket.session != state.session:
        return state  # It failed because its ztunnel went away.
    attempts = 1
    if state.last_failed is not None and state.last_failed[0] is ticket.step:
        attempts = state.last_failed[1] + 1
    failure = Failure(step=ticket.step, code=code, reason=reason, attempts=attempts)
    done = state.done
    if ticket.step is Step.LISTEN:
        # ztunnel has the pod, but its listeners are not in the table (which was made anew): offer it again.
        done -= {Step.OFFER}
    return replace(state, failure=failure, last_failed=(ticket.step, attempts), done=done)


def validate(state: Enrollment) -> None:
    """Check the invariants.

    Raises:
        AssertionError: one does not hold; names it.
    """
    assert state.done <= state.footprint, "a step is done that never began"
    if Step.PUBLISH in state.done:
        assert state.captured, "HBONE is announced for a pod that is not captured"
    if Step.CAPTURE_OUT in state.footprint and not state.unwinding:
        assert Step.CAPTURE_IN in state.footprint, "outbound is captured towards nothing"
    if Step.CAPTURE_IN in state.footprint:
        assert state.closed, "captured, and yet a lost ztunnel would leave it half captured"
    if state.unwinding:
        assert not state.footprint.isdisjoint(_CAPTURE), "unwinding with nothing to unwind"
    if state.forgotten:
        assert not state.footprint, "forgotten with something in place"
