# SPDX-License-Identifier: Apache-2.0
"""What a process still waits for before it is ready, by name."""

from __future__ import annotations

from collections.abc import Iterable


class Readiness:
    """A set of named blockers; ready when none is left. Blockers may come back."""

    def __init__(self, pending: Iterable[str] = ()) -> None:
        self._pending: dict[str, None] = dict.fromkeys(pending)

    def block(self, name: str) -> None:
        """Be unready until `name` is done; a second block of one name changes nothing."""
        self._pending[name] = None

    def done(self, name: str) -> None:
        """Lift one blocker; an absent one is no error."""
        self._pending.pop(name, None)

    def set(self, name: str, *, ready: bool) -> None:
        """Lift or set one blocker."""
        if ready:
            self.done(name)
        else:
            self.block(name)

    @property
    def pending(self) -> tuple[str, ...]:
        """Names of what is waited for, in the order in which they came."""
        return tuple(self._pending)

    @property
    def ready(self) -> bool:
        """Whether nothing is waited for."""
        return not self._pending
