"""A worker: what one process of several serves. Started by the supervisor only: see the package."""

# ruff: noqa: E402 - what is imported takes a while, and ctrl-C is for the supervisor from the start: it says what to do
from __future__ import annotations

import signal

signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGHUP, signal.SIG_IGN)

import asyncio
import ctypes
import gc
import json
import os
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog
import uvloop
from prometheus_client import values

from formgate_server import garbage, log
from formgate_server.settings import Settings
from formgate_server.wire.wakeups import EventLoop

_PR_SET_PDEATHSIG = 1
_BEAT_SECONDS = 1.0


def main() -> int:
    """Serve until told to end; returns the exit code: 0 when drained, 1 where it could not start."""
    number = int(sys.argv[1])
    _die_with_supervisor()
    link = Link()
    hello = link.hello
    if not hello:
        return 1
    settings = Settings(**hello["settings"])
    log.set_up(settings.log_level, settings.log_format)
    structlog.contextvars.bind_contextvars(worker=number)
    _count_in(hello["metrics"], number)
    uvloop.run(_serve(settings, link), loop_factory=EventLoop)
    return 1 if link.refused else 0


class Link:
    """The socket to the supervisor: standard input."""

    def __init__(self) -> None:
        self._socket = socket.socket(fileno=os.dup(0))
        with open(os.devnull, "rb") as nothing:  # noqa: PTH123 - a descriptor, not a file
            os.dup2(nothing.fileno(), 0)
        self._lines = self._socket.makefile("rb")
        self.hello: dict[str, Any] = json.loads(self._lines.readline() or "{}")
        """What to serve; empty: the supervisor is gone."""
        self.refused = False
        # No wait for whoever does not listen: what does not fit is not said.
        self._out = self._socket.dup()

    def listen(self, drain: Callable[[], None], hurry: Callable[[], None]) -> None:
        """Call what is told in this event loop. When the supervisor is gone, end at once, even if the loop hangs."""
        loop = asyncio.get_running_loop()
        told = {"drain": drain, "hurry": hurry}

        def hear() -> None:
            with suppress(OSError):
                for line in self._lines:
                    with suppress(RuntimeError):  # the loop is closed: we are about to end anyway
                        loop.call_soon_threadsafe(told[json.loads(line)])
            os.kill(os.getpid(), signal.SIGKILL)

        threading.Thread(target=hear, name="supervisor", daemon=True).start()

    def refuse(self, why: str) -> None:
        """Say why it can not start."""
        self.refused = True
        self.say("refused", why)

    def say(self, name: str, value: object) -> None:
        """Say a thing, if somebody listens."""
        with suppress(BlockingIOError, ConnectionError):
            self._out.send(json.dumps({name: value}).encode() + b"\n", socket.MSG_DONTWAIT)


def _die_with_supervisor() -> None:
    """Have the kernel kill this process when the supervisor is gone: frozen and hung processes read no socket."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _count_in(folder: str, number: int) -> None:
    """Have all metrics that are made from here on count in a file of the worker's number.

    By number and not by process: a worker's heir goes on counting where it was, and the files do not become more. How
    it was with its predecessor, which gauges tell, is over.
    """
    for gauges in Path(folder).glob(f"gauge_*_{number}.db"):
        gauges.unlink()
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
    values.ValueClass = values.MultiProcessValue(lambda: number)  # type: ignore[no-untyped-call]


async def _serve(settings: Settings, link: Link) -> None:
    # Here, because these make the metrics.
    from formgate_server import metrics  # noqa: PLC0415
    from formgate_server.bootstrap import build  # noqa: PLC0415
    from formgate_server.truth import StartError  # noqa: PLC0415

    stop, hurry = asyncio.Event(), asyncio.Event()

    def hurried() -> None:
        stop.set()
        hurry.set()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    link.listen(stop.set, hurried)
    heart = asyncio.create_task(_beat(link))
    try:
        async with build(settings, worker=True, hurry=hurry):
            garbage.slow_down()
            link.say("ready", True)  # noqa: FBT003 - the value of a message
            await stop.wait()
    except StartError as error:
        link.refuse(str(error))
    finally:
        heart.cancel()
        metrics.write()


async def _beat(link: Link) -> None:
    from formgate_server import metrics  # noqa: PLC0415 - as above

    while True:
        metrics.write()
        link.say("beat", gc.get_stats())
        await asyncio.sleep(_BEAT_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
