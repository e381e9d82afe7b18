"""What goes on when a store is away: the limiter and the keys as checks see them, over those that may not answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar
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

_T = TypeVar("_T")

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


def _some(values: Collection[_T]) -> list[list[_T]]:
    """Return ``values``, as they are now, in lists of as many as are asked at once."""
    ordered = list(values)
    return [ordered[first : first + _AT_ONCE] for first in range(0, len(ordered), _AT_ONCE)]


def _too_long() -> UnavailableError:
    return UnavailableError("The database has been away for too long to go on without it.")


class DegradedLimiter:
    """A Limiter over one that may be away (docs/guarantees.md: "When something is down").

    - The counters' store away: the epoch is read from the database, limits go by this process' share.
    - The database away: epochs by the counters' store, for ``database_grace``.
    - Both: what is known by heart, for ``max_staleness``.
    """

    def __init__(  # noqa: PLR0913 - what it is made of, and whom it tells
        self,
        shared: Limiter,
        shares: Shares,
        epochs: Epochs,
        freshness: Freshness,
        *,
        on_degraded: Callable[[str], None] = lambda _: None,
        on_lost: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Ask ``shared``. ``on_degraded`` is told why it is away, and nothing when it is back and all is charged there.

        ``on_lost`` is told how many units could not be charged in the end.
        """
        self._shared = shared
        self._shares = shares
        self._epochs = CoalescedEpochs(epochs)
        self._freshness = freshness
        self._on_degraded = on_degraded
        self._on_lost = on_lost
        # By account: of a cluster one part may be away, and what is well elsewhere says nothing of these.
        self._alone: set[str] = set()
        self._failed: set[str] = set()
        """Those of them that could not be charged since they were looked at last."""
        self._debts: list[tuple[str, Owed]] = []  # each under the name that makes its charge be made once
        self._healing: asyncio.Task[None] | None = None

    async def charge(self, charge: Charge) -> ChargeResult:
        """See ``Limiter.charge``."""
        if not self._freshness.is_within_grace:
            raise _too_long()
        try:
            outcome = await self._shared.charge(charge)
        except CountersUnavailableError as error:
            return await self._charge_alone(charge, error)
        return self._told(charge, outcome)

    async def charge_many(self, charges: Sequence[Charge]) -> Sequence[ChargeResult | UnavailableError]:
        """See ``Limiter.charge_many``."""
        if not self._freshness.is_within_grace:
            return [_too_long()] * len(charges)
        results: list[ChargeResult | UnavailableError] = []
        lost: list[tuple[int, CountersUnavailableError]] = []
        for charge, outcome in zip(charges, await self._shared.charge_many(charges), strict=True):
            if isinstance(outcome, CountersUnavailableError):
                lost.append((len(results), outcome))
            results.append(outcome if isinstance(outcome, UnavailableError) else self._told(charge, outcome))
        alone = await asyncio.gather(*(self._instead(charges[at], error) for at, error in lost))
        for (at, _), result in zip(lost, alone, strict=True):
            results[at] = result
        return results

    async def _instead(self, charge: Charge, lost: CountersUnavailableError) -> ChargeResult | UnavailableError:
        try:
            return await self._charge_alone(charge, lost)
        except UnavailableError as error:
            return error

    def _told(self, charge: Charge, outcome: ChargeResult) -> ChargeResult:
        if isinstance(outcome, Charged):
            if outcome.standings:
                self._shares.see(charge, outcome)
            if not self._freshness.database_up:
                return outcome._replace(degraded=True)
        return outcome

    async def _charge_alone(self, charge: Charge, lost: CountersUnavailableError) -> Charged | EpochMoved:
        self._go_alone(charge.account_id, lost)
        epoch = await self._epoch(charge)
        if epoch > charge.epoch:
            return EpochMoved(epoch)
        charged = await self._shares.charge(charge, maybe_charged=isinstance(lost, LostAnswerError))
        self._go_alone(charge.account_id, lost)  # it may have been settled while this one waited
        return charged

    def is_alone(self, account_id: str) -> bool:
        """Tell whether an account's limits go by this process' share."""
        return account_id in self._alone

    def _go_alone(self, account_id: str, lost: CountersUnavailableError) -> None:
        self._alone.add(account_id)
        self._failed.add(account_id)
        if self._healing is None:
            self._on_degraded(str(lost) or "it does not answer")
            self._healing = asyncio.create_task(self._heal())

    async def _epoch(self, charge: Charge) -> int:
        """Return the account's epoch as the database has it now; with that away too, as it was told last.

        A read that fails does not say that the database is away: the polls do, and one that can read tells the epoch.
        """
        began = self._freshness.now()
        if self._freshness.database_up:
            try:
                async with asyncio.timeout(_PATIENCE_SECONDS):
                    epoch = await self._epochs.of(charge.account_id)
            except (UnavailableError, TimeoutError):
                pass
            else:
                return charge.epoch + 1 if epoch is None else epoch  # an account that is gone: its key is, too
            if not await self._freshness.polled(began, _PATIENCE_SECONDS):
                raise UnavailableError("The database answers others, and not this check.")
        if not self._freshness.is_known:
            raise UnavailableError("Neither store answers.")
        return max(charge.epoch, self._freshness.newest(charge.account_id))

    async def _heal(self) -> None:
        """Look again and again whose counters answer, and charge what they are owed, until none is left alone.

        An account stays alone while it can not be charged: a store that is full answers, but takes nothing, and each
        outage that ends begins a new share.
        """
        while self._alone or self._debts:
            self._failed.clear()
            await asyncio.sleep(_RETRY_SECONDS)
            well = []
            for some in _some(self._alone - self._failed):
                answers = await asyncio.gather(*map(self._answers, some))
                well += [each for each, answered in zip(some, answers, strict=True) if answered]
            for account_id in well:
                self._owe(self._shares.owed(account_id))
            await self._pay_all()
            unpaid = self._failed.union(owed.account_id for _, owed in self._debts)
            for account_id in well:
                if account_id not in unpaid:
                    self._settle(account_id)
        self._healing = None
        self._on_degraded("")

    async def _answers(self, account_id: str) -> bool:
        """Tell whether an account's counters answer: no epoch is below 0, so this charges and changes nothing."""
        try:
            await self._shared.charge(Charge(account_id, 0, ""))
        except Exception:  # noqa: BLE001 - whatever it is, it is no answer
            return False
        return True

    def _settle(self, account_id: str) -> None:
        self._alone.discard(account_id)
        self._owe(self._shares.settle(account_id))

    def _owe(self, owed: Iterable[Owed]) -> None:
        self._debts += [(uuid4().hex, each) for each in owed]

    async def _pay_all(self) -> None:
        """Charge what is owed; what could not be charged stays owed."""
        for some in _some(self._debts):
            paid = await asyncio.gather(*(self._pay(*each) for each in some))
            done = {once for (once, _), well in zip(some, paid, strict=True) if well}
            self._debts = [each for each in self._debts if each[0] not in done]

    async def _pay(self, once: str, owed: Owed) -> bool:
        try:
            await self._shared.adjust(owed.account_id, owed.counters, owed.units, once=once)
        except Exception:  # noqa: BLE001 - one that fails may not keep the others from being charged
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
            return await self._shares.look(account_id, counters)

    async def adjust(self, account_id: str, counters: Sequence[Counter], units: int, *, once: str) -> None:
        """See ``Limiter.adjust``: what is to be charged in the end waits for the store."""
        await self._shared.adjust(account_id, counters, units, once=once)

    async def refund(self, account_id: str, key_id: str, request_id: str) -> None:
        """See ``Limiter.refund``."""
        await self._shared.refund(account_id, key_id, request_id)

    async def close(self) -> None:
        """Charge what is owed, if that can be done soon."""
        healing, self._healing = self._healing, None
        if healing is not None:
            healing.cancel()
            await asyncio.gather(healing, return_exceptions=True)
        for account_id in list(self._alone):
            self._settle(account_id)
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._pay_all()
        if self._debts:
            self._on_lost(sum(owed.units for _, owed in self._debts))


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
        self, digests: Sequence[bytes], *, at_least: int = 0, source_ip: str = "", newest: bool = False
    ) -> KeyRecord | TooManyAttempts | None:
        """See ``KeyFinder``."""
        newest = newest or not self._may_be_cached
        if not newest or self._cache.known(digests) is None:
            return await self._finder.find(digests, at_least=at_least, source_ip=source_ip, newest=newest)
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                return await self._cache.find(digests, at_least=LARGEST)
        except TimeoutError:
            raise UnavailableError("The database does not answer in time.") from None
