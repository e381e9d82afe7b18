"""The floor: bare grpc.aio servers that read a request and answer with bytes, decoding and deciding nothing.

python -m bench.echo SIZE WORKERS    # of each answer; so many processes share a port
"""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
import sys
from pathlib import Path

import grpc
import uvloop

from bench.process import Process
from formgate_server.wire.port import reserved


class Echo(grpc.GenericRpcHandler):
    """Answers every unary call with the same bytes."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def service(self, _: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        """Handle any method."""
        return grpc.unary_unary_rpc_method_handler(self._say)

    async def _say(self, _request: bytes, _context: object) -> bytes:
        return self._answer


def echo(size: int, *cores: int, logs: Path, workers: int = 1) -> Process:
    """Return the floor, started: what it takes is that of all its processes."""
    return Process([sys.executable, "-m", "bench.echo", str(size), str(workers)], *cores, logs=logs)


async def _serve(size: int, address: str) -> None:
    server = grpc.aio.server(handlers=[Echo(bytes(size))])
    server.add_insecure_port(address)
    await server.start()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    print(f"echo is ready: grpc {address}", flush=True)
    await ended.wait()
    await server.stop(1)


def _work(size: int, address: str) -> None:
    uvloop.run(_serve(size, address))


def main(size: int, workers: int) -> None:
    """Serve until SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # which ends the workers
    spawn = multiprocessing.get_context("spawn")
    with reserved("127.0.0.1:0") as address:
        servers = [spawn.Process(target=_work, args=(size, address), daemon=True) for _ in range(workers)]
        for server in servers:
            server.start()
        for server in servers:
            server.join()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
