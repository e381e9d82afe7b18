"""What goes on when a store is away: the limiter and the keys as checks see them, over those that may not answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING
from uuid import uuid4

from formgate_server.core.errors import CountersUnavailableError, LostAnswerError, UnavailableError
from formgate_server.core.fields import LARGEST
from formgate_server.core.ports import Charge, Charged, ChargeResult, EpochMoved

if TYPE_CHECKING:
    from formgate_server.core.freshness import Freshness
    from formgate_server.core.limits import Counter, Standing
    from formgate_server.core.ports import Epochs, KeyCache, KeyFinder, Limiter, TooManyAttempts
    from formgate_server.core.verdict import KeyRecord
    from formgate_server.storage.shares import Owed, Shares

_RETRY_SECONDS = 1.0
_CLOSE_SECONDS = 2.0
_PATIENCE_SECONDS = 2.0
_AT_ONCE = 64


class CoalescedEpochs:
    """Epochs from the database for many checks at once: whoever comes during a read shares the next one.

    Never the one under way: that may have begun before the change that the check must know.
    """

    def __init__(self, epochs: Epochs) -> None:
        self._epochs = epochs
        self._wanted: dict[str, asyncio.Future[int | None]] = {}
        self._reader: asyncio.Task[None] | None = None

    async def of(self, account_id: str) -> int | None:
        """Return the account's epoch, by a read begun after the call; None: there is no such account."""
        future = self._wanted.get(account_id)
        if future is None:
            future = self._wanted[account_id] = asyncio.get_running_loop().create_future()
            if self._reader is None:
                self._reader = asyncio.create_task(self._read())
        return await asyncio.shield(future)

    async def _read(self) -> None:
        try:
            while self._wanted:
                wanted, self._wanted = self._wanted, {}
                try:
                    epochs = await self._epochs.of(wanted)
                except BaseException as error:
                    for future in wanted.values():
                        _fail(future, error)
                    if not isinstance(error, Exception):
                        raise
                else:
                    for account_id, future in wanted.items():
                        future.set_result(epochs.get(account_id))
        finally:
            self._reader = None


def _fail(future: asyncio.Future[int | None], error: BaseException) -> None:
    future.set_exception(error if isinstance(error, UnavailableError) else UnavailableError("The read was broken off."))
    future.exception()  # seen, even where all who waited have gone


def _too_long() -> UnavailableError:
    return UnavailableError("The database has been away for too long to go on without it.")


class DegradedLimiter:
    """A Limiter over one that may be away (docs/guarantees.md: "When something is down").

    - The counters' store away: the epoch is read from the database, limits go by this process' share.
    - The database away: epochs by the counters' store, for ``database_grace``.
    - Both: what is known by heart, for ``max_staleness``.
    """

    def __init__(
        self,
        shared: Limiter,
        shares: Shares,
        epochs: Epochs,
        freshness: Freshness,
        *,
        on_degraded: Callable[[bool], None] = lambda _: None,
    ) -> None:
        """Ask ``shared``. ``on_degraded`` is told when it is away, and when it is back and all is charged there."""
        self._shared = shared
        self._shares = shares
        self._epochs = CoalescedEpochs(epochs)
        self._freshness = freshness
        self._on_degraded = on_degraded
        self._alone = False
        self._reconciling: asyncio.Task[None] | None = None

    async def charge(self, charge: Charge) -> ChargeResult:
        """See ``Limiter.charge``."""
        if not self._freshness.is_within_grace:
            raise _too_long()
        try:
            outcome = await self._shared.charge(charge)
        except CountersUnavailableError as error:
            return await self._charge_alone(charge, maybe_charged=isinstance(error, LostAnswerError))
        return self._told(charge, outcome)

    async def charge_many(self, charges: Sequence[Charge]) -> Sequence[ChargeResult | UnavailableError]:
        """See ``Limiter.charge_many``."""
        if not self._freshness.is_within_grace:
            return [_too_long()] * len(charges)
        results: list[ChargeResult | UnavailableError] = []
        lost: list[int] = []
        for charge, outcome in zip(charges, await self._shared.charge_many(charges), strict=True):
            if isinstance(outcome, CountersUnavailableError):
                lost.append(len(results))
            results.append(outcome if isinstance(outcome, UnavailableError) else self._told(charge, outcome))
        alone = await asyncio.gather(*(self._instead(charges[at], results[at]) for at in lost))
        for at, result in zip(lost, alone, strict=True):
            results[at] = result
        return results

    async def _instead(self, charge: Charge, lost: object) -> ChargeResult | UnavailableError:
        try:
            return await self._charge_alone(charge, maybe_charged=isinstance(lost, LostAnswerError))
        except UnavailableError as error:
            return error

    def _told(self, charge: Charge, outcome: ChargeResult) -> ChargeResult:
        if self._alone:
            self._come_back()
        if isinstance(outcome, Charged):
            if outcome.standings:
                self._shares.see(charge.key_id, outcome)
            if not self._freshness.database_up:
                return outcome._replace(degraded=True)
        return outcome

    async def _charge_alone(self, charge: Charge, *, maybe_charged: bool) -> Charged | EpochMoved:
        if not self._alone:
            self._alone = True
            self._on_degraded(True)  # noqa: FBT003 - told by position
        epoch = await self._epoch(charge)
        if epoch > charge.epoch:
            return EpochMoved(epoch)
        return await self._shares.charge(charge, maybe_charged=maybe_charged)

    async def _epoch(self, charge: Charge) -> int:
        """Return the account's epoch as the database has it now; with that away too, as it was told last."""
        if self._freshness.database_up:
            try:
                async with asyncio.timeout(_PATIENCE_SECONDS):
                    epoch = await self._epochs.of(charge.account_id)
            except (UnavailableError, TimeoutError):
                pass
            else:
                return charge.epoch + 1 if epoch is None else epoch  # an account that is gone: its key is, too
        if not self._freshness.is_known:
            raise UnavailableError("Neither store answers.")
        return max(charge.epoch, self._freshness.newest(charge.account_id))

    def _come_back(self) -> None:
        if self._reconciling is None:
            self._reconciling = asyncio.create_task(self._reconcile())

    async def _reconcile(self) -> None:
        """Charge what is owed, each once; then the counters' store is back."""
        try:
            self._alone = False
            owed = [(uuid4().hex, each) for each in self._shares.settle()]
            while owed:
                some = owed[:_AT_ONCE]
                done = await asyncio.gather(*(self._pay(*each) for each in some))
                owed = owed[_AT_ONCE:] + [each for each, paid in zip(some, done, strict=True) if not paid]
                if not all(done):
                    await asyncio.sleep(_RETRY_SECONDS)
            if not self._alone:
                self._on_degraded(False)  # noqa: FBT003 - told by position
        finally:
            self._reconciling = None

    async def _pay(self, once: str, owed: Owed) -> bool:
        try:
            await self._shared.adjust(owed.account_id, owed.counters, owed.units, once=once)
        except UnavailableError:
            return False
        return True

    async def publish(self, account_id: str, epoch: int) -> None:
        """See ``Limiter.publish``."""
        await self._shared.publish(account_id, epoch)

    async def seed(self, account_id: str, epoch: int, incarnation: int) -> None:
        """See ``Limiter.seed``. Where that is away, the next charge finds out."""
        try:
            await self._shared.seed(account_id, epoch, incarnation)
        except UnavailableError:
            return

    async def look(self, account_id: str, counters: Sequence[Counter]) -> tuple[Standing, ...]:
        """See ``Limiter.look``."""
        try:
            return await self._shared.look(account_id, counters)
        except CountersUnavailableError:
            return await self._shares.look(counters)

    async def adjust(self, account_id: str, counters: Sequence[Counter], units: int, *, once: str) -> None:
        """See ``Limiter.adjust``: what is to be charged in the end waits for the store."""
        await self._shared.adjust(account_id, counters, units, once=once)

    async def refund(self, account_id: str, key_id: str, request_id: str) -> None:
        """See ``Limiter.refund``."""
        await self._shared.refund(account_id, key_id, request_id)

    async def close(self) -> None:
        """Charge what is owed, if that can be done soon."""
        reconciling = self._reconciling
        if reconciling is not None:
            await asyncio.wait({reconciling}, timeout=_CLOSE_SECONDS)
            reconciling.cancel()
            await asyncio.gather(reconciling, return_exceptions=True)
        for each in self._shares.settle():
            if not await self._pay(uuid4().hex, each):
                return


class FreshKeys:
    """A KeyFinder that asks the database on every check while this process may not have heard of all changes."""

    def __init__(self, finder: KeyFinder, cache: KeyCache, freshness: Freshness) -> None:
        self._finder = finder
        self._cache = cache
        self._freshness = freshness

    def known(self, digests: Sequence[bytes]) -> KeyRecord | None:
        """See ``KeyFinder``. Nothing is at hand that may be old."""
        return self._finder.known(digests) if self._may_be_cached else None

    @property
    def _may_be_cached(self) -> bool:
        """Without the database, what is known goes by the epochs in the counters' store."""
        return self._freshness.is_fresh or not self._freshness.database_up

    async def find(
        self, digests: Sequence[bytes], *, at_least: int = 0, source_ip: str = ""
    ) -> KeyRecord | TooManyAttempts | None:
        """See ``KeyFinder``."""
        if self._may_be_cached or self._cache.known(digests) is None:
            return await self._finder.find(digests, at_least=at_least, source_ip=source_ip)
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                return await self._cache.find(digests, at_least=LARGEST)
        except TimeoutError:
            raise UnavailableError("The database does not answer in time.") from None
