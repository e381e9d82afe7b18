"""Runs the server: settings, build, serve, drain."""

from __future__ import annotations

import asyncio
import signal
import sys

import structlog
import uvloop

from formgate_server import log
from formgate_server.bootstrap import StartError, build, prune, upgrade_database
from formgate_server.core.prune import OnProgress
from formgate_server.settings import Settings

_log = structlog.get_logger("formgate.server")


def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT, and return the exit code: 0 when drained, 1 where it could not start."""
    log.set_up(settings.log_level, settings.log_format)
    try:
        uvloop.run(_serve(settings))
    except StartError as error:
        print(f"formgate: {error}", file=sys.stderr)  # noqa: T201 - for whoever typed the command
        return 1
    return 0


def migrate(settings: Settings) -> None:
    """Bring the database to this version. Raises StartError where that can not be."""
    uvloop.run(upgrade_database(settings))


def prune_usage(settings: Settings, batch: int, on_progress: OnProgress | None) -> dict[str, int]:
    """Delete old usage, or only count it where ``on_progress`` is None. Raises StartError where that can not be."""
    return uvloop.run(prune(settings, batch, on_progress))


async def _serve(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    async with build(settings) as addresses:
        print(  # noqa: T201 - the one line that tells programs and people that they may go on
            f"formgate is ready: grpc {addresses.grpc}, http {addresses.http}, data {settings.data}", flush=True
        )
        await stop.wait()
        _log.info("draining")
