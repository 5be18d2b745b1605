# SPDX-License-Identifier: Apache-2.0
"""A pod's network namespace: open it, name it by cookie, prove that it is the pod's.

All calls block for microseconds to milliseconds and run in a worker thread; entering a
namespace is done in a thread of its own that ends there, so that no other code can find
itself in a pod. Nothing here changes a namespace (that is `mark_route`).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from daemonset.codes import Code
from mesh.model.address import IPAddress, parse_ip

T = TypeVar("T")

CLONE_NEWNET = 0x40000000
NS_GET_NSTYPE = 0xB703
"""ioctl of a namespace descriptor (linux/nsfs.h)."""
SO_NETNS_COOKIE = 71
"""getsockopt, u64, since 5.14 (asm-generic/socket.h)."""

MAX_CANDIDATES = 64
"""Namespaces that are looked into for one pod."""

_libc = ctypes.CDLL(None, use_errno=True)


class NetnsError(Exception):
    """A namespace cannot be had or is not the pod's; carries the code and what was seen."""

    def __init__(self, code: Code, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Netns:
    """An open network namespace; whoever opened it closes it.

    `cookie` is the kernel's name for it, never reused while the machine runs; `inode` is
    that of nsfs and may be reused once the namespace is gone.
    """

    def __init__(self, fd: int, path: str) -> None:
        self.fd = fd
        self.path = path
        status = os.fstat(fd)
        self.device = status.st_dev
        self.inode = status.st_ino
        self.cookie = run_in(fd, netns_cookie)

    def same_as(self, other: Netns) -> bool:
        """Whether both are one namespace."""
        return self.cookie == other.cookie

    def close(self) -> None:
        """Close the descriptor; a second call does nothing."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Netns:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_netns(path: str | Path) -> Netns:
    """Open a network namespace by path (`/run/netns/NAME`, `/proc/PID/ns/net`).

    Raises:
        NetnsError: the path is absent, not readable, or no network namespace.
    """
    try:
        # A path that the caller was given may be a FIFO or device: do not wait, do not act.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise NetnsError(Code.NETNS_NOT_FOUND, f"{path}: {error.strerror}") from error
    try:
        _require_network(fd, path)
        return Netns(fd, str(path))
    except OSError as error:
        os.close(fd)
        raise NetnsError(Code.NETNS_NOT_FOUND, f"{path} is no network namespace") from error
    except BaseException:
        os.close(fd)
        raise


def cookie_of(path: str) -> int | None:
    """Return the cookie of the namespace at a path; None when there is none."""
    try:
        with open_netns(path) as space:
            return space.cookie
    except NetnsError:
        return None


def _require_network(fd: int, path: str | Path) -> None:
    if fcntl.ioctl(fd, NS_GET_NSTYPE) != CLONE_NEWNET:
        raise NetnsError(Code.NETNS_NOT_FOUND, f"{path} is a namespace of another kind")


def _enter(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET) != 0:
        raise NetnsError(Code.NETNS_NOT_FOUND, f"setns: {os.strerror(ctypes.get_errno())}")


def run_in(fd: int, work: Callable[[], T]) -> T:
    """Run `work` inside a network namespace, in a thread made for it.

    Raises:
        NetnsError: the namespace cannot be entered (CAP_SYS_ADMIN).
        Exception: whatever `work` raised.
    """
    outcome: list[T] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            _enter(fd)
            outcome.append(work())
        except BaseException as error:  # noqa: BLE001 - handed to the caller, in its thread
            failure.append(error)

    thread = threading.Thread(target=body, name="netns")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def netns_cookie() -> int:
    """Return the cookie of the calling thread's network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        value = probe.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
    return int(struct.unpack("=Q", value)[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """One interface as its own namespace sees it."""

    index: int
    name: str
    addresses: frozenset[IPAddress]
    peer_netns: int | None
    """Namespace id (as seen from here) of its peer or lower device; None: it has none elsewhere."""
    peer_index: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What was read inside a pod's namespace."""

    interfaces: tuple[Interface, ...]
    node_netns: int | None
    """The node's namespace id as seen from here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """What the node knows of one address and one pod's namespace."""

    pod_netns: int | None
    """The pod's namespace id as seen from the node."""
    routed_to: int | None
    """Index of the node's device that the address is routed to; None: no route."""
    kind: str
    """That device's kind (`veth`, `bridge`, ...)."""
    device_netns: int | None
    """Namespace id of that device's peer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """That a namespace owns the pod's addresses."""

    point_to_point: bool
    """The node reaches each address over a veth whose other end is in the pod: no neighbour can answer."""


def check(addresses: Collection[IPAddress], view: View, node: dict[IPAddress, NodeView]) -> Proof:
    """Decide whether a namespace is the pod's; pure.

    Three things must hold for each address: an interface of the namespace has it; that
    interface hangs on the node itself (a namespace that a pod's process made can have the
    address, but not the link); and when the node routes the address over a veth, the other
    end is in this namespace (so a stale or stolen address is not taken for the pod's).

    Raises:
        NetnsError: one does not; names the address and what was found instead.
    """
    if not addresses:
        raise NetnsError(Code.ADDRESS_NOT_OWNED, "the pod has no address to prove")
    point_to_point = True
    for address in addresses:
        owner = next((i for i in view.interfaces if address in i.addresses), None)
        if owner is None:
            have = sorted(str(a) for i in view.interfaces for a in i.addresses if not a.is_loopback)
            raise NetnsError(
                Code.ADDRESS_NOT_OWNED, f"the namespace has not {address}, but {', '.join(have) or 'none'}"
            )
        if owner.peer_netns is None or owner.peer_netns != view.node_netns:
            raise NetnsError(
                Code.NOT_LINKED, f"interface {owner.name}, which has {address}, has no link to the node"
            )
        seen = node[address]
        if seen.kind == "veth" and seen.device_netns != seen.pod_netns:
            raise NetnsError(
                Code.ROUTED_ELSEWHERE, f"the node routes {address} to another namespace than the one found"
            )
        point_to_point = point_to_point and seen.kind == "veth"
    return Proof(point_to_point=point_to_point)


def prove(netns: Netns, addresses: Collection[IPAddress], node: Netns) -> Proof:
    """Prove that `netns` owns the pod's addresses (see `check`).

    Raises:
        NetnsError: it does not, or it is the node's own namespace.
    """
    if netns.same_as(node):
        raise NetnsError(Code.NODE_NAMESPACE, f"{netns.path} is the node's own network namespace")
    try:
        view = run_in(netns.fd, lambda: _view(node.fd))
        seen = run_in(node.fd, lambda: {a: _node_view(a, netns.fd) for a in addresses})
    except NetlinkError as error:
        raise NetnsError(Code.ADDRESS_NOT_OWNED, f"reading the namespace failed: {error}") from error
    return check(addresses, view, seen)


def _netns_id(route: IPRoute, fd: int) -> int | None:
    nsid = route.get_netnsid(fd=fd)["nsid"]
    return nsid if isinstance(nsid, int) and 0 <= nsid < 0x7FFFFFFF else None


def _view(node_fd: int) -> View:
    with IPRoute() as route:
        owned: dict[int, set[IPAddress]] = {}
        for message in route.get_addr():
            text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            owned.setdefault(message["index"], set()).add(parse_ip(text))
        interfaces = tuple(
            Interface(
                index=link["index"],
                name=link.get_attr("IFLA_IFNAME"),
                addresses=frozenset(owned.get(link["index"], ())),
                peer_netns=link.get_attr("IFLA_LINK_NETNSID"),
                peer_index=link.get_attr("IFLA_LINK"),
            )
            for link in route.get_links()
        )
        return View(interfaces=interfaces, node_netns=_netns_id(route, node_fd))


def _node_view(address: IPAddress, pod_fd: int) -> NodeView:
    with IPRoute() as route:
        pod_netns = _netns_id(route, pod_fd)
        try:
            found = [m.get_attr("RTA_OIF") for m in route.route("get", dst=str(address))]
        except NetlinkError:
            found = []  # Unreachable from the node: other CNIs than ours may route so.
        if not found or found[0] is None:
            return NodeView(pod_netns=pod_netns, routed_to=None, kind="", device_netns=None)
        link = next(iter(route.get_links(found[0])))
        info = link.get_attr("IFLA_LINKINFO")
        return NodeView(
            pod_netns=pod_netns,
            routed_to=found[0],
            kind=(info.get_attr("IFLA_INFO_KIND") or "") if info is not None else "",
            device_netns=link.get_attr("IFLA_LINK_NETNSID"),
        )


def find(paths: Iterable[str], addresses: Collection[IPAddress], node: Netns) -> tuple[Netns, Proof]:
    """Open the first of several candidate paths that proves to be the pod's namespace.

    Paths of one namespace are tried once, and at most MAX_CANDIDATES namespaces, as a pod may make many.

    Returns:
        the open namespace, which the caller closes, and the proof.

    Raises:
        NetnsError: none is; the reason is that of the last candidate that could be opened.
    """
    refusal = NetnsError(
        Code.NETNS_NOT_FOUND, "no process of the pod was found, and the CNI named no namespace"
    )
    seen: set[tuple[int, int]] = set()
    for path in paths:
        try:
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in seen or len(seen) >= MAX_CANDIDATES:
                continue
            netns = open_netns(path)
        except (NetnsError, OSError) as error:
            if not seen:
                refusal = NetnsError(Code.NETNS_NOT_FOUND, f"{path}: {getattr(error, 'strerror', error)}")
            continue
        try:
            seen.add((netns.device, netns.inode))
            return netns, prove(netns, addresses, node)
        except NetnsError as error:
            netns.close()
            refusal = error
    raise refusal
