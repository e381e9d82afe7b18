"""A server with a supervisor, as ``tests/support/server.py`` has one without."""

from __future__ import annotations

import sys

import psutil

from tests.support.server import Server

# `formgate serve` refuses several workers on a folder, and has no supervisor for one. All but their number is as it is.
_SUPERVISE = """
import asyncio, sys, types
from formgate_server import cli, server

server._serve = server._supervise
server.uvloop = types.SimpleNamespace(run=lambda main, **_: asyncio.run(main))
sys.exit(cli.run(sys.argv[1:]))
"""


class SupervisedServer(Server):
    """One data folder, served by one worker of a supervisor."""

    command = (sys.executable, "-c", _SUPERVISE)


def workers_of(server: Server) -> list[psutil.Process]:
    """Return a server's workers that run, the oldest first."""
    children = psutil.Process(server.process.pid).children()
    return sorted(
        (child for child in children if child.status() != psutil.STATUS_ZOMBIE), key=psutil.Process.create_time
    )
