"""Servers to ask: real ones, and ones whose handler only gives what it was given."""

from __future__ import annotations

import asyncio
import io
import multiprocessing
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc

from vitscope.v1 import service_pb2

SERVICE = service_pb2.DESCRIPTOR.services_by_name["ActivationService"]


@contextmanager
def served(*indexes: Path, options: Sequence[str] = ()) -> Iterator[str]:
    """A real server process over indexes."""
    command = [sys.executable, "-m", "vitscope.client", "serve", *map(str, indexes)]
    # All that wait, and none refused.
    command += ["--in-hand", "light=64,scan=64"]
    command += ["--listen", "127.0.0.1:0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield (process.stdout or io.StringIO()).readline().split()[-1]
        finally:
            process.terminate()


@contextmanager
def canned(method: str, replies: Sequence[bytes], workers: int = 1) -> Iterator[str]:
    """Processes on one port with an asyncio server whose handler only returns `replies`."""
    spawn = multiprocessing.get_context("spawn")
    address = "127.0.0.1:0"
    with ExitStack() as stack:
        for _ in range(workers):
            here, there = spawn.Pipe()
            given = (method, replies, address, there)
            process = spawn.Process(target=_serve, args=given, daemon=True)
            process.start()
            stack.callback(process.terminate)
            address = here.recv()
        yield address


def _serve(method: str, replies: Sequence[bytes], address: str, told: Connection) -> None:
    async def one(_: bytes, __: Any) -> bytes:
        return replies[0]

    async def several(_: bytes, __: Any) -> Any:
        for reply in replies:
            yield reply

    async def run() -> None:
        server = grpc.aio.server(options=[("grpc.so_reuseport", 1)])
        handler: Any = grpc.unary_unary_rpc_method_handler(one)
        if SERVICE.methods_by_name[method].server_streaming:
            handler = grpc.unary_stream_rpc_method_handler(several)
        generic = grpc.method_handlers_generic_handler(SERVICE.full_name, {method: handler})
        server.add_generic_rpc_handlers((generic,))
        port = server.add_insecure_port(address)
        await server.start()
        told.send(f"127.0.0.1:{port}")
        await server.wait_for_termination()

    asyncio.run(run())
