"""Whether a Redis may be used: it is looked at before its first use, and again each time it has come back.

One that is away when the server starts is no reason not to start; but once it comes it may be one that evicts, and one
that comes back may be another than the one that went.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, NamedTuple

from formgate_server.core.errors import UnavailableError
from formgate_server.storage.redis.client import RedisClient
from formgate_server.storage.redis.errors import StoreUnavailable
from formgate_server.storage.redis.preflight import Facts
from formgate_server.storage.redis.script import Script

_RETRY_SECONDS = 1.0


class Findings(NamedTuple):
    """What a look came to. ``problems``: why it may not be used; ``hidden``: who hides the replication id."""

    problems: tuple[str, ...]
    hidden: tuple[str, ...]

    @classmethod
    def of(cls, facts: Iterable[Facts]) -> Findings:
        """Return what follows from the facts of every primary."""
        seen = list(facts)
        problems = tuple(problem for each in seen for problem in each.problems)
        return cls(problems, tuple(str(each.address) for each in seen if not each.replid_in_scripts))


class Fitness:
    """What is known of a Redis. ``why`` says why it is not to be used; empty: it may be."""

    def __init__(
        self,
        look: Callable[[], Awaitable[Findings]],
        found: Findings | None,
        on_findings: Callable[[Findings], None],
        *,
        retry_seconds: float = _RETRY_SECONDS,
    ) -> None:
        """Begin with what was ``found``; None: nothing yet, so that it is looked at as soon as it comes.

        ``look`` raises UnavailableError where it does not answer. ``on_findings`` is told what is found, once until
        something else is.
        """
        self._look = look
        self._found = found
        self._on_findings = on_findings
        self._retry_seconds = retry_seconds
        self._looking: asyncio.Task[None] | None = None
        self.why = ""
        if found is None:
            self.why = "it has not been looked at yet"
            self.came()

    def came(self) -> None:
        """Look: it has come, or has come back."""
        if self._looking is None:
            self._looking = asyncio.create_task(self._look_until_fit())

    async def _look_until_fit(self) -> None:
        while True:
            if await self._is_fit():
                break
            await asyncio.sleep(self._retry_seconds)
        self._looking = None

    async def _is_fit(self) -> bool:
        try:
            found = await self._look()
        except Exception:  # noqa: BLE001 - away again, or gone in the middle of a word: nothing was found
            return False
        self.why = "; ".join(found.problems)
        if found != self._found:
            self._found = found
            self._on_findings(found)
        return not found.problems

    async def close(self) -> None:
        """Look no more."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)


class FitRedis:
    """A RedisClient that asks nothing of a Redis that is not fit: it is as if it were away."""

    def __init__(self, client: RedisClient, fitness: Fitness) -> None:
        self._client = client
        self._fitness = fitness

    async def run(
        self,
        script: Script,
        slot: str,
        keys: Sequence[str | bytes],
        args: Sequence[str | bytes | int],
        *,
        repeatable: bool,
    ) -> Any:  # noqa: ANN401 - a reply may be anything
        """See ``RedisClient``."""
        return await self.run_soon(script, slot, keys, args, repeatable=repeatable)

    def run_soon(
        self,
        script: Script,
        slot: str,
        keys: Sequence[str | bytes],
        args: Sequence[str | bytes | int],
        *,
        repeatable: bool,
    ) -> asyncio.Future[Any]:
        """See ``RedisClient``."""
        if self._fitness.why:
            refused: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            refused.set_exception(self._unfit())
            return refused
        return self._client.run_soon(script, slot, keys, args, repeatable=repeatable)

    async def command(self, *args: str | bytes | int, slot: str | None = None) -> Any:  # noqa: ANN401
        """See ``RedisClient``."""
        if self._fitness.why:
            raise self._unfit()
        return await self._client.command(*args, slot=slot)

    def place(self, slot: str) -> object:
        """See ``RedisClient``."""
        return self._client.place(slot)

    @property
    def connections(self) -> int:
        """See ``RedisClient``."""
        return self._client.connections

    @property
    def under_way(self) -> int:
        """See ``RedisClient``."""
        return self._client.under_way

    def _unfit(self) -> UnavailableError:
        return StoreUnavailable(self._fitness.why)

    async def close(self) -> None:
        """See ``RedisClient``."""
        await self._fitness.close()
        await self._client.close()
