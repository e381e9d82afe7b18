"""All looks, side by side, each with an end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import suppress

from formgate_server.doctor import machine, service, stores
from formgate_server.doctor.findings import Finding, Status, fail
from formgate_server.doctor.service import Connect
from formgate_server.settings import Settings

Look = Callable[[], AsyncIterator[Finding]]


async def examine(  # noqa: PLR0913 - what there is to say
    given: Settings,
    variables: Mapping[str, str],
    *,
    seconds: float,
    connect: Connect,
    encrypted: bool,
    address: str | None,
) -> list[Finding]:
    """Return all findings. Each store has so many ``seconds``, all of them at the same time.

    ``connect`` makes a channel to the server at ``address`` (None: it is not asked), ``encrypted`` says if by TLS.
    """
    policies, of_policies = machine.policies(given)
    looks: dict[str, Look] = {
        "database": lambda: stores.database(given, policies),
        "redis": lambda: stores.counters(given, seconds),
    }
    if address is not None:
        looks |= {
            "grpc": lambda: _threaded(lambda: _by_grpc(address, given, seconds, connect, encrypted=encrypted)),
            "http": lambda: _threaded(lambda: _by_http(given, seconds)),
        }
    asked = [asyncio.create_task(_in_time(name, look, seconds)) for name, look in looks.items()]
    here = [
        *machine.environment(variables),
        *machine.settings(given),
        *machine.secrets(given),
        of_policies,
        *machine.certificates(given, policies),
    ]
    return [*here, *(finding for found in await asyncio.gather(*asked) for finding in found)]


def _by_grpc(address: str, given: Settings, seconds: float, connect: Connect, *, encrypted: bool) -> Iterator[Finding]:
    if given.serves_tls and not encrypted:
        return service.certificate(address, given, seconds)
    return service.health(address, connect, seconds)


def _by_http(given: Settings, seconds: float) -> Iterator[Finding]:
    if given.http.endswith(":0"):
        return iter(())
    return service.probes(service.reachable(given.http), seconds)


async def _threaded(look: Callable[[], Iterator[Finding]]) -> AsyncIterator[Finding]:
    """Look in a thread, for what waits by itself: it must end in time by itself, too."""
    for finding in await asyncio.to_thread(lambda: list(look())):
        yield finding


async def _in_time(name: str, look: Look, seconds: float) -> list[Finding]:
    """Return what was found by the end of the time; that there was more to see is a finding."""
    found: list[Finding] = []

    async def collect() -> None:
        async for finding in look():
            found.append(finding)  # noqa: PERF401 - what is found before the end counts

    task = asyncio.create_task(collect())
    done, _ = await asyncio.wait({task}, timeout=seconds)
    if not done:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.wait({task}, timeout=seconds)
        advice = "it stands still, or is slow: look at it, or give it more by --timeout"
        found.append(fail(name, f"no answer within {seconds:g} s", advice))
    elif (error := task.exception()) is not None:
        found.append(fail(name, f"the look at it failed: {type(error).__name__}", "please report it"))
    return found


def failed(findings: list[Finding]) -> bool:
    """Tell whether anything will not do."""
    return any(each.status is Status.FAIL for each in findings)
