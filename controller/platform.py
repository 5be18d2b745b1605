# SPDX-License-Identifier: Apache-2.0
"""What the controller stands on: directories of one machine, or the API of a cluster.

The app sees four things of it, and none of them knows which it is: where objects come
from, who checks tokens, whose root signs, where what is generated goes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from controller.authenticate import Authenticator, TokenAuthenticator
from controller.ca.issue import Authority
from controller.ca.store import open_authority
from controller.generated import Generated
from controller.translate.gateway import Status
from controller.translate.waypoint_objects import Object
from mesh.config.objects import ObjectKey, RawObject
from mesh.config.source import DirectorySource, ObjectSource
from mesh.runtime.clock import Clock


class Output(Protocol):
    """Where the objects and statuses go that the translation wants."""

    def with_statuses(self, objects: Mapping[ObjectKey, RawObject]) -> dict[ObjectKey, RawObject]:
        """Return the objects with the statuses that were written last."""
        ...

    def write(self, objects: Iterable[Object], statuses: Iterable[Status], now_s: float) -> None:
        """Have it be like this, whole."""
        ...


async def _nothing() -> None:
    return


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """One of the two; whoever opened it closes it."""

    source: ObjectSource
    tokens: Authenticator
    authority: Authority
    output: Output
    loops: Mapping[str, Callable[[], Coroutine[object, object, None]]]
    """What runs beside the app, by what it means when one fails: the app ends then."""
    describe: Callable[[], list[dict[str, Any]]]
    """How each kind is followed, for the admin page."""
    close: Callable[[], Awaitable[None]] = _nothing


def open_directories(
    objects: tuple[Path, ...],
    generated: Path,
    ca_dir: Path,
    token_key: Path,
    *,
    trust_domain: str,
    clock: Clock,
) -> Platform:
    """Stand on directories.

    Raises:
        StoreError: the authority's directory cannot be used.
    """
    return Platform(
        source=DirectorySource(objects),
        tokens=TokenAuthenticator(token_key, clock),
        authority=open_authority(ca_dir, trust_domain, clock.wall()),
        output=Generated(generated),
        loops={},
        describe=lambda: [{"directory": str(directory)} for directory in objects],
    )
