"""Meeting a server: connect, say who we are, and make sure that it is ready, and a primary."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import hiredis

from formgate_server.storage.redis.connection import Connection
from formgate_server.storage.redis.refusals import code_of
from formgate_server.storage.redis.script import Script
from formgate_server.storage.redis.url import Address, Login, Target

_NAME = "formgate"


@dataclass(frozen=True)
class Options:
    """How connections are made and used. ``timeout``: seconds. ``most``: requests under way at once on one of them."""

    target: Target
    timeout: float
    connections: int = 1
    most: int = 4_096
    replicas: int = 0


class NotReadyError(Exception):
    """The server is there and is of no use at present; the message says why, without secrets."""


async def meet_primary(address: Address, options: Options, scripts: Collection[Script]) -> Connection:
    """Return a connection to a primary that has the scripts. Raises NotReadyError or OSError."""
    connection = await connected(address, options, replicas=options.replicas)
    target = options.target
    try:
        await log_in(connection, target.login)
        await _ready_primary(connection, options)
        # Where SCRIPT LOAD is not allowed, EVAL loads each at its first use.
        await asyncio.gather(*(connection.ask("SCRIPT", "LOAD", script.source) for script in scripts))
    except BaseException:
        connection.abort("not ready")
        raise
    return connection


async def _ready_primary(connection: Connection, options: Options) -> None:
    """Raise NotReadyError unless it is one. Where the name or the role is not for us to ask, it is not needed."""
    target = options.target
    questions = [connection.ask("CLIENT", "SETNAME", _NAME), connection.ask("ROLE"), connection.ask("PING")]
    if target.database:
        questions.append(connection.ask("SELECT", target.database))
    if target.kind == "cluster":
        questions.append(connection.ask("CLUSTER", "INFO"))
    _, role, *needed = await asyncio.gather(*questions)
    for answer in needed:
        if isinstance(answer, hiredis.ReplyError):
            raise NotReadyError(f"{connection.address} answered {_first_line(answer)}")
    if isinstance(role, list) and role[0] != b"master":
        raise NotReadyError(f"{connection.address} is a replica, not a primary")
    if target.kind == "cluster" and b"cluster_state:ok" not in needed[-1]:
        raise NotReadyError(f"{connection.address} says that the cluster is down")


async def ask_once(address: Address, options: Options, login: Login, *commands: tuple[str, ...]) -> list[Any]:
    """Return the replies to commands on a connection of their own. Raises NotReadyError or OSError."""
    connection = await connected(address, options)
    try:
        await log_in(connection, login)
        replies = await asyncio.gather(*(connection.ask(*command) for command in commands))
        for reply in replies:
            if isinstance(reply, hiredis.ReplyError):
                raise NotReadyError(f"{address} answered {_first_line(reply)}")
        return replies
    finally:
        connection.abort("asked")


async def connected(
    address: Address, options: Options, kind: type[Connection] = Connection, *, replicas: int = 0
) -> Connection:
    """Return a connection of that kind, nobody logged in yet. Raises OSError."""
    tls = options.target.tls
    _, connection = await asyncio.get_running_loop().create_connection(
        lambda: kind(address, timeout=options.timeout, most=options.most, replicas=replicas),
        address.host,
        address.port,
        ssl=tls,
        server_hostname=address.host if tls is not None else None,
    )
    return connection


async def log_in(connection: Connection, login: Login) -> None:
    """Say who we are. Raises NotReadyError."""
    if login.command is None:
        return
    # AUTH and not HELLO: who does not know HELLO quotes it back, password and all.
    answer = await connection.ask(*login.command)
    if isinstance(answer, hiredis.ReplyError):
        raise NotReadyError(f"the server does not take the user and password ({code_of(str(answer))})")


def _first_line(error: hiredis.ReplyError) -> str:
    return str(error).splitlines()[0][:200]
