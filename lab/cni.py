# SPDX-License-Identifier: Apache-2.0
"""The client's side of the node agent's CNI socket: one JSON object a line."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TIMEOUT_S = 40.0
"""For one answer; the agent's own limit is 30 s."""
MAX_LINE_BYTES = 64 * 1024


class CniError(Exception):
    """The agent did not take or release a pod; says why, with the agent's code."""


async def call(socket: Path, command: str, pod: Mapping[str, Any], netns: str) -> str:
    """Send ADD or DEL for a pod; return `enrolled`, `ignored` or `removed`.

    Raises:
        CniError: the agent is not there, does not answer, or refuses. Safe to retry.
    """
    metadata = pod["metadata"]
    request = {
        "cmd": command,
        "uid": metadata["uid"],
        "namespace": metadata["namespace"],
        "name": metadata["name"],
        "netns": netns,
        "ips": [entry["ip"] for entry in (pod.get("status") or {}).get("podIPs") or ()],
    }
    try:
        async with asyncio.timeout(TIMEOUT_S):
            reader, writer = await asyncio.open_unix_connection(str(socket), limit=MAX_LINE_BYTES)
            try:
                writer.write(json.dumps(request).encode() + b"\n")
                await writer.drain()
                answer = json.loads(await reader.readline() or b"{}")
            finally:
                writer.close()
    except TimeoutError as error:
        raise CniError(f"the node agent did not answer within {TIMEOUT_S:.0f} s") from error
    except FileNotFoundError as error:
        raise CniError("the node agent has not opened its socket yet") from error
    except (OSError, ValueError) as error:
        raise CniError(f"the node agent cannot be reached: {error}") from error
    result = str(answer.get("result", "error"))
    if result == "error":
        raise CniError(f"{answer.get('code', '')} {answer.get('reason', 'the agent closed the connection')}")
    return result
