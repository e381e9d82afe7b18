"""What the Python client makes of the wire: checks of many callers at once, beside calls of one's own."""

from __future__ import annotations

import asyncio
import itertools
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from bench.asking import PERMISSION, RESOURCE, check
from bench.h2load import Answered
from bench.process import Cores
from bench.report import Report, Target
from bench.scenarios import Scenario
from bench.world import Served, served
from formgate import AsyncClient, Client
from formgate.options import connection
from formgate.v1.authorization_pb2 import CheckKeyResponse
from formgate.wire import CHECK

_KEYS = 1_000
_AT_ONCE = 64
_THREADS = 16
_TIMEOUT = 10.0


class Size(NamedTuple):
    """How much is measured."""

    rounds: int
    seconds: float
    """Of each scenario in each round."""


FULL = Size(rounds=7, seconds=2.0)
QUICK = Size(rounds=3, seconds=0.5)

Ask = Callable[[str], Awaitable[bool]]
"""Asks whether a key may."""


def measure(size: Size, cores: Cores) -> Report:
    """Run every scenario in turn, round after round."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="formgate-bench-")))
        world = stack.enter_context(served(folder / "client", cores.server, _KEYS))
        runner = stack.enter_context(asyncio.Runner())
        token = world.headers["authorization"].removeprefix("Bearer ")
        client = AsyncClient(world.process.address, token, timeout=_TIMEOUT, leases=False)
        threads = stack.enter_context(Client(world.process.address, token, timeout=_TIMEOUT, leases=False))
        channel = runner.run(_channel(world.process.address, token))
        by_call, by_client = _by_call(channel, token), _by_client(client)
        one, many = f"{_AT_ONCE} callers", f"{_THREADS} threads"
        lines = [
            _asyncio("CheckKey by grpc.aio, one by one", world, runner, by_call, 1),
            _asyncio(f"CheckKey by grpc.aio, {one}", world, runner, by_call, _AT_ONCE),
            _asyncio("AsyncClient, one by one", world, runner, by_client, 1),
            _asyncio(f"AsyncClient, {one}", world, runner, by_client, _AT_ONCE),
            _threads("Client, one by one", world, threads, 1),
            _threads(f"Client, {many}", world, threads, _THREADS),
        ]
        for number in range(size.rounds):
            for line in lines:
                print(f"bench: round {number + 1} of {size.rounds}: {line.name} …", file=sys.stderr, flush=True)
                line.run(size.seconds)
        notes = [world.verify()]
        runner.run(channel.close())
        runner.run(client.close())
    calls, many_calls, alone, together, thread, many_threads = lines
    notes += [
        f"AsyncClient, one by one, adds {_added(alone, calls):.0f} µs to a call, p50",
        f"{one} by AsyncClient get {_times(together, many_calls):.1f} times as many verdicts as by calls of their own",
        f"{many} by Client get {_times(many_threads, thread):.1f} times as many as one",
    ]
    targets = [
        Target(f"AsyncClient, {one}, to calls one by one", _times(together, calls), 5, "{:.1f}", at_least=True),
    ]
    return Report("The Python client, on SQLite", "the client itself", lines, targets, notes)


def _times(line: Scenario, base: Scenario) -> float:
    """Return how many times as many checks a second ``line`` got, round by round."""
    return median(mine.per_second / other.per_second for mine, other in zip(line.rounds, base.rounds, strict=True))


def _added(line: Scenario, base: Scenario) -> float:
    """Return by how many microseconds half of the checks of ``line`` take longer, round by round."""
    return median(mine.p50_ms - other.p50_ms for mine, other in zip(line.rounds, base.rounds, strict=True)) * 1e3


async def _channel(address: str, token: str) -> Any:  # noqa: ANN401 - types-grpcio has it generic
    return connection(address, token).aio_channel()


def _by_call(channel: Any, token: str) -> Ask:  # noqa: ANN401 - the same
    """Ask by a call of one's own: the least that a caller of grpc.aio can do."""
    call = channel.unary_unary(CHECK)
    metadata = (("authorization", f"Bearer {token}"),)

    async def ask(secret: str) -> bool:
        answer: bytes = await call(check(secret).SerializeToString(), timeout=_TIMEOUT, metadata=metadata)
        return CheckKeyResponse.FromString(answer).allowed

    return ask


def _by_client(client: AsyncClient) -> Ask:
    async def ask(secret: str) -> bool:
        return bool(await client.check(secret, permissions=PERMISSION, resources=RESOURCE, source_ip="203.0.113.7"))

    return ask


def _asyncio(name: str, world: Served, runner: asyncio.Runner, ask: Ask, callers: int) -> Scenario:
    async def work(secrets: Iterator[str], latencies: list[int]) -> None:
        for secret in secrets:
            began = time.perf_counter()
            assert await ask(secret)
            latencies.append(int((time.perf_counter() - began) * 1e6))

    async def send_all(secrets: Iterator[str], latencies: list[int]) -> None:
        await asyncio.gather(*(work(secrets, latencies) for _ in range(callers)))

    keys = itertools.cycle(world.secrets)

    def send(calls: int) -> Answered:
        world.expected += calls
        latencies: list[int] = []
        began = time.perf_counter()
        runner.run(send_all(itertools.islice(keys, calls), latencies))
        return Answered(calls, time.perf_counter() - began, latencies)

    return Scenario(name, world.process, send, guess=200 * callers, informative=False)


def _threads(name: str, world: Served, client: Client, callers: int) -> Scenario:
    keys = itertools.cycle(world.secrets)

    def work(secrets: list[str]) -> list[int]:
        latencies = []
        for secret in secrets:
            began = time.perf_counter()
            assert client.check(secret, permissions=PERMISSION, resources=RESOURCE, source_ip="203.0.113.7")
            latencies.append(int((time.perf_counter() - began) * 1e6))
        return latencies

    def send(calls: int) -> Answered:
        world.expected += calls
        secrets = list(itertools.islice(keys, calls))
        began = time.perf_counter()
        with ThreadPoolExecutor(callers) as threads:
            latencies = [
                one for some in threads.map(work, [secrets[n::callers] for n in range(callers)]) for one in some
            ]
        return Answered(calls, time.perf_counter() - began, latencies)

    return Scenario(name, world.process, send, guess=200 * callers, informative=False)
