# SPDX-License-Identifier: Apache-2.0
"""Asking a pod's own resolver, from inside the pod: one socket, port and id per question.

An answer counts only if it comes from that resolver, with that id, to that question; a
truncated one is asked for again over TCP.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import struct

from mesh.net.sockets import DialError, Peer, dial, family_of
from ztunnel.netns import PodNamespace

UDP_TIMEOUT_S = 2.0
"""Shorter than a stub resolver's 5 s, so that its next server is tried in time."""
TCP_TIMEOUT_S = 5.0
MAX_UDP_BYTES = 65535
_TRUNCATED = 0x0200
_RESPONSE = 0x8000


class ForwardError(Exception):
    """The resolver did not answer; says what happened."""


async def forward(namespace: PodNamespace, resolver: Peer, query: bytes, *, tcp: bool) -> bytes:
    """Ask a resolver and return its answer under the query's own id.

    Raises:
        ForwardError: no answer in time, or none that fits the question.
    """
    number = secrets.token_bytes(2)
    asked = number + query[2:]
    try:
        answer = None
        if not tcp:
            async with asyncio.timeout(UDP_TIMEOUT_S):
                answer = await _ask_udp(namespace, resolver, asked)
        if answer is None or struct.unpack_from("!H", answer, 2)[0] & _TRUNCATED:
            async with asyncio.timeout(TCP_TIMEOUT_S):
                answer = await _ask_tcp(namespace, resolver, asked)
    except TimeoutError as error:
        raise ForwardError(f"{resolver} did not answer in time") from error
    except (OSError, DialError, asyncio.IncompleteReadError) as error:
        raise ForwardError(f"{resolver}: {error}") from error
    return query[:2] + answer[2:]


def question_bytes(message: bytes) -> bytes | None:
    """Return the question section of a message with exactly one question, name in lower case; else None.

    Source: RFC 1035 section 4.1.2; the name of a question is never compressed.
    """
    if len(message) < 12 or struct.unpack_from("!H", message, 4)[0] != 1:
        return None
    position = 12
    while position < len(message) and message[position]:
        if message[position] > 63:
            return None
        position += message[position] + 1
    end = position + 5
    if end > len(message):
        return None
    return message[12 : position + 1].lower() + message[position + 1 : end]


def fits(answer: bytes, asked: bytes) -> bool:
    """Whether an answer has the id and the question of what was asked."""
    return (
        len(answer) >= 12
        and answer[:2] == asked[:2]
        and bool(struct.unpack_from("!H", answer, 2)[0] & _RESPONSE)
        and question_bytes(answer) == question_bytes(asked)
    )


async def _ask_udp(namespace: PodNamespace, resolver: Peer, asked: bytes) -> bytes:
    loop = asyncio.get_running_loop()
    with namespace.socket(family_of(resolver.address), socket.SOCK_DGRAM) as sock:
        # Connected: the kernel drops what comes from elsewhere, and tells of closed ports.
        sock.connect(resolver.sockaddr)
        await loop.sock_sendall(sock, asked)
        while True:
            answer = await loop.sock_recv(sock, MAX_UDP_BYTES)
            if fits(answer, asked):
                return answer


async def _ask_tcp(namespace: PodNamespace, resolver: Peer, asked: bytes) -> bytes:
    sock = await dial(namespace.socket, resolver, timeout_s=TCP_TIMEOUT_S)
    reader, writer = await asyncio.open_connection(sock=sock)
    try:
        writer.write(struct.pack("!H", len(asked)) + asked)
        await writer.drain()
        size = struct.unpack("!H", await reader.readexactly(2))[0]
        answer = await reader.readexactly(size)
    finally:
        writer.close()
    if not fits(answer, asked):
        raise OSError("the answer does not fit the question")
    return answer
