# SPDX-License-Identifier: Apache-2.0
"""What an earlier agent left behind, and what of it belongs to nobody; pure.

Inputs are the agent's files, the pinned links, the records and the published objects as
they were read; outputs say which pods to take over and what to remove.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from daemonset.pods import Pod
from daemonset.store import Remembered


@dataclass(frozen=True, slots=True, kw_only=True)
class Takeover:
    """A pod that an earlier agent had, as far as can be told."""

    remembered: Remembered
    captured: bool
    """Its link or its record is in place."""
    published: bool

    def pod(self, node: str) -> Pod:
        """Return it as an object, until the real one is read."""
        known = self.remembered
        return Pod(
            uid=known.uid,
            namespace=known.namespace,
            name=known.name,
            service_account=known.service_account,
            node=node,
            addresses=known.addresses,
            phase="Running",
        )


def takeovers(
    files: Mapping[str, Remembered],
    *,
    lookups: Mapping[str, int],
    records: Collection[int],
    published: Collection[str],
) -> list[Takeover]:
    """Return the pods to take over, each in the state that its traces show.

    Args:
        files: uid -> what the earlier agent wrote.
        lookups: uid -> netns cookie of pinned sk_lookup links.
        records: netns cookies of enrolment records.
        published: uids of Enrollment objects.
    """
    return [
        Takeover(
            remembered=known,
            captured=lookups.get(uid) == known.cookie or known.cookie in records,
            published=uid in published,
        )
        for uid, known in sorted(files.items())
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Orphans:
    """Things in place that no pod of this agent answers for."""

    records: tuple[int, ...] = ()
    """Netns cookies."""
    lookups: tuple[str, ...] = ()
    """Pod uids."""
    published: tuple[str, ...] = ()
    """Pod uids."""

    def __bool__(self) -> bool:
        return bool(self.records or self.lookups or self.published)


def orphans(
    *,
    known_uids: Collection[str],
    known_cookies: Collection[int],
    lookups: Collection[str],
    records: Collection[int],
    published: Collection[str],
) -> Orphans:
    """Return what belongs to no known pod.

    Call it only once the objects have been read and no known pod waits for its proof, as a
    pod that is still looked for has no cookie yet.
    """
    return Orphans(
        records=tuple(sorted(set(records) - set(known_cookies))),
        lookups=tuple(sorted(set(lookups) - set(known_uids))),
        published=tuple(sorted(set(published) - set(known_uids))),
    )
