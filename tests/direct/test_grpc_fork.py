# SPDX-License-Identifier: Apache-2.0
"""A process with open gRPC calls starts others: each comes to life."""

from __future__ import annotations

import os
import subprocess
import sys

STARTED = 300
"""With gRPC's fork handlers 18 of 1,000 die before exec: all of 300 living by luck has odds of 1 in 200."""

PROGRAM = f"""
import mesh
import asyncio, grpc, uvloop

async def echo(request, context):
    return request

async def main():
    server = grpc.aio.server()
    handler = {{"m": grpc.unary_unary_rpc_method_handler(echo)}}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("s", handler),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()

    async def load():
        while True:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{{port}}") as channel:
                call = channel.unary_unary("/s/m")
                for _ in range(20):
                    await call(b"x")

    loads = [asyncio.create_task(load()) for _ in range(3)]
    codes = []
    for _ in range({STARTED}):
        process = await asyncio.create_subprocess_exec("/bin/true")
        codes.append(await process.wait())
    for task in loads:
        task.cancel()
    await asyncio.gather(*loads, return_exceptions=True)
    await server.stop(0)
    print(codes.count(0), sorted(set(codes)))

uvloop.run(main())
"""


def test_processes_started_beside_open_calls_live() -> None:
    environ = {name: value for name, value in os.environ.items() if name != "GRPC_ENABLE_FORK_SUPPORT"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environ, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split("\n")[0] == f"{STARTED} [0]", done.stdout + done.stderr
