# SPDX-License-Identifier: Apache-2.0
"""The mark route inside a pod: how answers to transparent dials find their way to ztunnel.

ztunnel dials the application from the client's address with a marked socket; the
application's answers carry the mark too and are routed to the pod's own loopback. The
mark decides nothing else, and nothing outside the pod. IPv6 is set where the pod has it.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

MARK = 0x111
MASK = 0xFFF
TABLE = 100
PRIORITY = 32764
"""Numbers of Istio's in-pod rule (`ip rule fwmark 0x111/0xfff pref 32764 lookup 100`)."""

_ACCEPT = Path("/proc/sys/net/ipv4/tcp_fwmark_accept")
"""What is accepted bears the mark of its SYN."""
_REFLECT = tuple(Path(f"/proc/sys/net/{family}/fwmark_reflect") for family in ("ipv4", "ipv6"))
"""So does the refusal of a closed port: without, it would leave the pod, and the dial would time out."""


def install() -> None:
    """Set sysctl, rules and routes in the calling thread's namespace; idempotent.

    Raises:
        OSError, NetlinkError: no permission, or the kernel refused.
    """
    _set_switches("1")
    with IPRoute() as route:
        loopback = _loopback(route)
        route.link("set", index=loopback, state="up")
        for family in _families():
            with _tolerating(errno.EEXIST):
                route.rule("add", **_rule(family))
            route.route("replace", **_local_route(family, loopback))


def remove() -> None:
    """Undo `install` in the calling thread's namespace; what is absent is no error.

    Raises:
        OSError, NetlinkError: no permission.
    """
    _set_switches("0")
    with IPRoute() as route:
        loopback = _loopback(route)
        for family in _families():
            with _tolerating(errno.ENOENT):
                route.rule("del", **_rule(family))
            # IPv6 answers ENOENT where IPv4 answers ESRCH; both go by themselves when lo goes down.
            with _tolerating(errno.ESRCH, errno.ENOENT):
                route.route("del", **_local_route(family, loopback))


def _set_switches(value: str) -> None:
    _ACCEPT.write_text(value)
    for path in _REFLECT:
        if path.exists():  # A kernel without IPv6 has no such file.
            path.write_text(value)


def installed() -> bool:
    """Return whether an IPv4 rule for the mark exists in the calling thread's namespace."""
    with IPRoute() as route:
        return any(r.get_attr("FRA_FWMARK") == MARK for r in route.get_rules(family=socket.AF_INET))


def _families() -> tuple[int, ...]:
    disabled = Path("/proc/sys/net/ipv6/conf/lo/disable_ipv6")
    try:
        if disabled.read_text().strip() == "0":
            return (socket.AF_INET, socket.AF_INET6)
    except OSError:
        pass  # A kernel without IPv6.
    return (socket.AF_INET,)


def _loopback(route: IPRoute) -> int:
    return int(route.link_lookup(ifname="lo")[0])


def _rule(family: int) -> dict[str, int]:
    return {"family": family, "fwmark": MARK, "fwmask": MASK, "table": TABLE, "priority": PRIORITY}


def _local_route(family: int, loopback: int) -> dict[str, object]:
    return {
        "family": family,
        "type": "local",
        "dst": "0.0.0.0/0" if family == socket.AF_INET else "::/0",
        "oif": loopback,
        "table": TABLE,
        "scope": "host" if family == socket.AF_INET else "universe",
    }


@contextmanager
def _tolerating(*codes: int) -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        if error.code not in codes:
            raise
