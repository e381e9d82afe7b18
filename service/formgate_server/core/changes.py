"""How anything is changed: one transaction, then the account's new epoch is published, then the caller is answered."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from formgate_server.core.errors import UnavailableError
from formgate_server.core.finishing import Finishing
from formgate_server.core.ports import Clock, Limiter, Registry, Transaction

T = TypeVar("T")


class Changed(NamedTuple, Generic[T]):
    """What a change made of a thing; ``epoch``, its account's after the change, None: no verdict depends on it."""

    result: T
    account_id: str
    epoch: int | None


@dataclass(frozen=True, slots=True)
class Effective(Generic[T]):
    """A change's result, and from when on every check decides by it."""

    result: T
    effective_time: int


class Changes:
    """Runs changes. One that has begun is finished even if its caller goes away.

    Were it cut off between commit and publication, checks would decide by the old state until somebody published.
    """

    def __init__(self, registry: Registry, limiter: Limiter, clock: Clock, *, max_staleness: int = 0) -> None:
        """Publish to ``limiter``; where it is away, all know of a change ``max_staleness`` microseconds later."""
        self.registry = registry
        self.clock = clock
        self._limiter = limiter
        self._max_staleness = max_staleness
        self._finishing = Finishing()

    async def apply(self, change: Callable[[Transaction], Awaitable[Changed[T]]]) -> Effective[T]:
        """Run ``change`` in a transaction of its own and publish its epoch.

        A change that finds nothing to do returns the epoch all the same: who repeats a call may do so because the first
        was cut off before it had published.
        """
        return await self._finishing.run(self._apply(change))

    async def _apply(self, change: Callable[[Transaction], Awaitable[Changed[T]]]) -> Effective[T]:
        async with self.registry.transaction() as transaction:
            changed = await change(transaction)
        effective_time = self.clock.now()
        if changed.epoch is not None:
            try:
                await self._limiter.publish(changed.account_id, changed.epoch)
            except UnavailableError:  # committed all the same: whoever follows the changes publishes it
                return Effective(changed.result, self.clock.now() + self._max_staleness)
            effective_time = self.clock.now()
        return Effective(changed.result, effective_time)

    async def finish(self) -> None:
        """Wait for the changes under way."""
        await self._finishing.finish()
