"""Runs the server: settings, build, serve, drain; or workers that do so, and their supervisor."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import structlog
import uvloop
from pydantic import SecretStr

from formgate_server import garbage, log
from formgate_server.bootstrap import Addresses, build
from formgate_server.core.prune import OnProgress
from formgate_server.maintenance import prune, upgrade_database
from formgate_server.maintenance import renew_epochs as renew_all
from formgate_server.metrics.of_workers import of_workers
from formgate_server.settings import Settings
from formgate_server.truth import StartError
from formgate_server.wire.http import HttpServer
from formgate_server.wire.port import reserved
from formgate_server.wire.wakeups import EventLoop
from formgate_server.workers.supervisor import Supervisor, WorkerRefusedError

_log = structlog.get_logger("formgate.server")
# -P: a file in the working directory is no module of ours.
_WORKER = (sys.executable, "-P", "-m", "formgate_server.workers")


def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT, and return the exit code: 0 when drained, 1 where it could not start."""
    log.set_up(settings.log_level, settings.log_format)
    try:
        if settings.workers == 1:
            uvloop.run(_serve(settings), loop_factory=EventLoop)
        else:
            _check_topology(settings)
            asyncio.run(_supervise(settings))
    except (StartError, WorkerRefusedError) as error:
        print(f"formgate: {error}", file=sys.stderr)  # noqa: T201 - for whoever typed the command
        return 1
    return 0


def migrate(settings: Settings) -> None:
    """Bring the database to this version. Raises StartError where that can not be."""
    uvloop.run(upgrade_database(settings))


def renew_epochs(settings: Settings, on_progress: Callable[[int], None]) -> int:
    """Raise every account's epoch, as after a restore, and return how many. Raises StartError where that can not be."""
    return uvloop.run(renew_all(settings, on_progress))


def prune_usage(settings: Settings, batch: int, on_progress: OnProgress | None) -> dict[str, int]:
    """Delete old usage, or only count it where ``on_progress`` is None. Raises StartError where that can not be."""
    return uvloop.run(prune(settings, batch, on_progress))


async def _serve(settings: Settings) -> None:
    stop, hurry = asyncio.Event(), asyncio.Event()

    def asked() -> None:
        (hurry if stop.is_set() else stop).set()

    _on_signals(asked)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # started with nohup, it is to outlive its terminal
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, stop.set)
    async with build(settings, hurry=hurry) as addresses:
        garbage.slow_down()
        _tell_ready(settings, addresses)
        await stop.wait()
        _log.info("draining")


async def _supervise(settings: Settings) -> None:
    """Serve with several processes. Raises StartError or WorkerRefusedError."""
    try:
        with (
            reserved(settings.listen) as address,
            nullcontext() if settings.auth_http is None else reserved(settings.auth_http) as auth,
            tempfile.TemporaryDirectory(prefix="formgate-metrics-", ignore_cleanup_errors=True) as folder,
        ):
            await _supervise_at(settings.model_copy(update={"listen": address, "auth_http": auth}), Path(folder))
    except OSError as error:
        raise StartError(str(error)) from error


async def _supervise_at(settings: Settings, folder: Path) -> None:
    hello = json.dumps({"settings": _revealed(settings), "metrics": str(folder)}, default=str).encode()
    supervisor = Supervisor(_WORKER, hello, settings.workers, settings.drain_seconds)
    _on_signals(supervisor.drain)
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, supervisor.renew)
    host, _, port = settings.http.rpartition(":")
    registry = of_workers(folder, supervisor.facts, lambda: supervisor.started)
    http = HttpServer(host.strip("[]"), int(port), live=supervisor.live, ready=supervisor.ready, registry=registry)
    try:
        addresses = Addresses(settings.listen, f"{host}:{http.port}", settings.auth_http)
        await supervisor.run(lambda: _tell_ready(settings, addresses))
    finally:
        http.close()


def _check_topology(settings: Settings) -> None:
    """Refuse what would count apart. Raises StartError."""
    missing = [
        name
        for name, given in (
            ("FORMGATE_DATABASE_URL", settings.database_url),
            ("FORMGATE_REDIS_URL", settings.redis_url),
        )
        if given is None
    ]
    if missing:
        message = (
            "several workers need PostgreSQL and Redis: without, they would each count for themselves and so multiply"
            f" the limits in silence: give {' and '.join(missing)}, or have one worker"
        )
        raise StartError(message)


def _revealed(settings: Settings) -> dict[str, object]:
    """Return the settings as they are, secrets included, for a worker's eyes only."""
    return {name: value.get_secret_value() if isinstance(value, SecretStr) else value for name, value in settings}


def _on_signals(asked: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, asked)


def _tell_ready(settings: Settings, addresses: Addresses) -> None:
    where = f"data {settings.data}" if settings.database_url is None else f"on PostgreSQL, workers {settings.workers}"
    if addresses.auth_http is not None:
        where = f"auth {addresses.auth_http}, {where}"
    print(  # noqa: T201 - the one line that tells programs and people that they may go on
        f"formgate is ready: grpc {addresses.grpc}, http {addresses.http}, {where}", flush=True
    )
