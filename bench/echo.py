"""The floor: a bare grpc.aio server that reads a request and answers with bytes, decoding and deciding nothing.

python -m bench.echo SIZE    # of each answer
"""

from __future__ import annotations

import asyncio
import signal
import sys

import grpc
import uvloop


class Echo(grpc.GenericRpcHandler):
    """Answers every unary call with the same bytes."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def service(self, _: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        """Handle any method."""
        return grpc.unary_unary_rpc_method_handler(self._say)

    async def _say(self, _request: bytes, _context: object) -> bytes:
        return self._answer


async def main(size: int) -> None:
    """Serve until SIGTERM."""
    server = grpc.aio.server(handlers=[Echo(bytes(size))])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    print(f"echo is ready: grpc 127.0.0.1:{port}", flush=True)
    await ended.wait()
    await server.stop(1)


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
