"""How anything is changed: one transaction, then the account's new epoch is published, then the caller is answered."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from formgate_server.core.errors import UnavailableError
from formgate_server.core.finishing import Finishing
from formgate_server.core.policy import Policies
from formgate_server.core.ports import Clock, Leases, Limiter, Registry, Transaction

T = TypeVar("T")


class Changed(NamedTuple, Generic[T]):
    """What a change made of a thing; ``epoch``, its account's after the change, None: no verdict depends on it.

    ``is_new``: it made the account.
    """

    result: T
    account_id: str
    epoch: int | None
    is_new: bool = False


@dataclass(frozen=True, slots=True)
class Effective(Generic[T]):
    """A change's result, and from when on every check decides by it."""

    result: T
    effective_time: int


class Changes:
    """Runs changes. One that has begun is finished even if its caller goes away.

    Were it cut off between commit and publication, checks would decide by the old state until somebody published.
    """

    def __init__(  # noqa: PLR0913 - what a change goes through
        self,
        registry: Registry,
        limiter: Limiter,
        clock: Clock,
        *,
        max_staleness: int = 0,
        leases: Leases | None = None,
        policies: Policies | None = None,
        on_change: Callable[[str, int], None] = lambda _account_id, _epoch: None,
    ) -> None:
        """Publish to ``limiter``; where it is away, all know of a change ``max_staleness`` microseconds later.

        ``leases`` None: there are none; those of accounts of ``policies`` are no longer than these say. ``on_change``
        is told of each account's new epoch.
        """
        self.registry = registry
        self.clock = clock
        self._limiter = limiter
        self._max_staleness = max_staleness
        self._leases = leases
        known = () if policies is None else policies.by_name.values()
        self._longest = {each.name: each.longest_lease for each in known}
        self._on_change = on_change
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
        if changed.is_new and self._leases is not None:
            with suppress(UnavailableError):  # then its first changes wait for leases that there may have been
                await self._leases.none_out(changed.account_id)
        if changed.epoch is None:
            return Effective(changed.result, self.clock.now())
        try:
            await self._limiter.publish(changed.account_id, changed.epoch)
        except UnavailableError:  # committed all the same: whoever follows the changes publishes it
            return Effective(changed.result, self.clock.now() + self._max_staleness)
        finally:
            self._on_change(changed.account_id, changed.epoch)
        leased = await self._leased(changed.account_id)
        return Effective(changed.result, self.clock.now() + leased)

    async def _leased(self, account_id: str) -> int:
        """Return for how many microseconds leases may be out that were granted before a change was published."""
        longest = max(self._longest.values(), default=0)
        if self._leases is None or not longest:
            return 0
        try:
            left, known_for = await self._leases.out(account_id)
        except UnavailableError:
            left, known_for = 0, 0
        if known_for is None or left >= longest - known_for:
            return left
        return max(left, await self._longest_lease(account_id, longest) - known_for)

    async def _longest_lease(self, account_id: str, longest: int) -> int:
        try:
            account = await self.registry.account(account_id)
        except UnavailableError:
            return longest
        return longest if account is None else self._longest.get(account.policy, longest)

    async def finish(self) -> None:
        """Wait for the changes under way."""
        await self._finishing.finish()
