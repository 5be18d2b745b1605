# SPDX-License-Identifier: Apache-2.0
"""The one place where a connection is judged by policy: at its start and again on each change.

Pure. Always reads the store as it is now, never a snapshot taken when the connection
opened, so that a policy or label that came later holds for live connections too.
"""

from __future__ import annotations

from dataclasses import dataclass

from mesh.authz.evaluate import Connection, evaluate
from mesh.model.workload import Workload
from mesh.state.store import Store
from mesh.telemetry.reasons import Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """Whether a connection may exist, and the code and words if not."""

    allowed: bool
    reason: Reason
    """COMPLETE when allowed."""
    detail: str
    policy: str = ""
    """`namespace/name` of the policy that decided; empty: none did."""
    dry_run: tuple[str, ...] = ()


def judge(store: Store, workload: Workload, connection: Connection) -> Judgement:
    """Judge a connection to `workload` by the policies in force now; what cannot be judged is denied."""
    policies = store.policies_for(workload)
    who = str(connection.source_identity or "a peer without identity")
    where = f"{workload.namespace}/{workload.name}:{connection.destination_port}"
    asked = f"{who} ({connection.source_ip}) to {where}"
    if policies.unusable:
        return Judgement(
            allowed=False,
            reason=Reason.POLICY_UNKNOWN,
            detail=f"denied {asked}: {policies.unusable}; "
            "see /config_dump of this ztunnel and the controller's log",
        )
    verdict = evaluate(policies.policies, connection)
    if verdict.allowed:
        return Judgement(
            allowed=True,
            reason=Reason.COMPLETE,
            detail=verdict.reason,
            policy=verdict.policy or "",
            dry_run=verdict.dry_run,
        )
    return Judgement(
        allowed=False,
        reason=Reason.POLICY_DENIED,
        detail=f"denied {asked}: {verdict.reason}",
        policy=verdict.policy or "",
        dry_run=verdict.dry_run,
    )
