# SPDX-License-Identifier: Apache-2.0
"""Messages of ZDS between values and bytes; one message a datagram.

Source: Istio's `istio.workload.zds` (proto/zds.proto has names and numbers). What cannot
be understood is refused, never guessed: a message that names no pod could remove one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from mesh.proto import zds_pb2 as pb

MAX_MESSAGE_BYTES = 1024
"""Longest datagram in either direction; a longer one is a protocol error."""
VERSION = 1

M = TypeVar("M", bound=Message)


class ZdsProtocolError(Exception):
    """The peer sent what is no ZDS, or at the wrong time; says what. The connection ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """ztunnel's first message: the version that it speaks."""

    version: int = VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class AddWorkload:
    """Take this pod; travels with exactly one descriptor, of its network namespace."""

    uid: str
    """The pod's own uid, unrelated to a workload's uid in xDS."""
    name: str
    namespace: str
    service_account: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepWorkload:
    """The pod is still there and its namespace cannot be sent again; in a snapshot only."""

    uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DelWorkload:
    """Let go of this pod."""

    uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotSent:
    """Every pod of the node was named; what was not is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ack:
    """The answer to one request; an empty error is success."""

    error: str = ""


ZdsRequest = AddWorkload | KeepWorkload | DelWorkload | SnapshotSent


def encode_hello(hello: Hello) -> bytes:
    """Encode as `ZdsHello`."""
    return pb.ZdsHello(version=pb.Version.Name(hello.version)).SerializeToString()


def decode_hello(data: bytes) -> Hello:
    """Decode a `ZdsHello`.

    Raises:
        ZdsProtocolError: something else, or a version that we do not speak (peer's fault).
    """
    message = _parse(pb.ZdsHello(), data)
    if message.version != VERSION:
        raise ZdsProtocolError(f"ZDS version {message.version} is not spoken here, only {VERSION}")
    return Hello(version=message.version)


def encode_request(request: ZdsRequest) -> bytes:
    """Encode as `WorkloadRequest`.

    Raises:
        ValueError: longer than a datagram may be (local fault; names the pod).
    """
    message = pb.WorkloadRequest()
    match request:
        case AddWorkload():
            message.add.uid = request.uid
            message.add.workload_info.name = request.name
            message.add.workload_info.namespace = request.namespace
            message.add.workload_info.service_account = request.service_account
        case KeepWorkload():
            message.keep.uid = request.uid
        case DelWorkload():
            getattr(message, "del").uid = request.uid
        case SnapshotSent():
            message.snapshot_sent.SetInParent()
    data = message.SerializeToString()
    if len(data) > MAX_MESSAGE_BYTES:
        raise ValueError(f"{type(request).__name__} has {len(data)} bytes, more than {MAX_MESSAGE_BYTES}")
    return data


def decode_request(data: bytes) -> ZdsRequest:
    """Decode a `WorkloadRequest`.

    Raises:
        ZdsProtocolError: something else, a kind that we do not know, or one that names no pod.
    """
    message = _parse(pb.WorkloadRequest(), data)
    kind = message.WhichOneof("payload")
    if kind == "add":
        info = message.add.workload_info
        if not message.add.uid or not info.name or not info.namespace or not info.service_account:
            raise ZdsProtocolError(
                f"AddWorkload of {message.add.uid!r} does not say whose namespace it carries"
            )
        return AddWorkload(
            uid=message.add.uid,
            name=info.name,
            namespace=info.namespace,
            service_account=info.service_account,
        )
    if kind == "keep":
        return KeepWorkload(uid=_uid("KeepWorkload", message.keep.uid))
    if kind == "del":
        return DelWorkload(uid=_uid("DelWorkload", getattr(message, "del").uid))
    if kind == "snapshot_sent":
        return SnapshotSent()
    raise ZdsProtocolError("a request of a kind that we do not know")


def encode_ack(ack: Ack) -> bytes:
    """Encode as `WorkloadResponse`; an error that is too long is cut."""
    for limit in (len(ack.error), MAX_MESSAGE_BYTES // 4 - 16):
        message = pb.WorkloadResponse()
        message.ack.SetInParent()
        # A character has at most four bytes in UTF-8.
        message.ack.error = ack.error[:limit]
        data = message.SerializeToString()
        if len(data) <= MAX_MESSAGE_BYTES:
            break
    return data


def decode_ack(data: bytes) -> Ack:
    """Decode a `WorkloadResponse`.

    Raises:
        ZdsProtocolError: something else.
    """
    message = _parse(pb.WorkloadResponse(), data)
    if message.WhichOneof("payload") != "ack":
        raise ZdsProtocolError("a response of a kind that we do not know")
    return Ack(error=message.ack.error)


def _parse(message: M, data: bytes) -> M:
    if len(data) > MAX_MESSAGE_BYTES:
        raise ZdsProtocolError(f"a message of {len(data)} bytes, more than {MAX_MESSAGE_BYTES}")
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise ZdsProtocolError(f"no {message.DESCRIPTOR.name}: {error}") from error
    return message


def _uid(kind: str, uid: str) -> str:
    if not uid:
        raise ZdsProtocolError(f"{kind} names no pod")
    return uid
