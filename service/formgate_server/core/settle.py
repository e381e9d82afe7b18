"""What accepted usage records want charged or given back: done beside the records, and made up for after a failure.

A record and what it owes are written in one transaction: whoever wrote it may end at any moment, and somebody else
does the rest (docs/adr/0011).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from formgate_server.core.compile_key import counters
from formgate_server.core.policy import Policies
from formgate_server.core.ports import KeyHolder, Limiter, Owed, UsageLedger

_SECOND: Final = 1_000_000
LEFT_ALONE: Final = 5 * _SECOND
"""How long what is owed belongs to whoever wrote it, or took it last, in microseconds."""
_AT_ONCE = 64
_MOST = 500
_IDLE_SECONDS = 2.0
_LONGEST_WAIT_SECONDS = 60.0


class Settle:
    """Charges and gives back what records owe, and has the ledger forget it then."""

    def __init__(self, ledger: UsageLedger, limiter: Limiter, policies: Policies) -> None:
        self._ledger = ledger
        self._limiter = limiter
        self._policies = policies

    async def __call__(self, owed: Sequence[Owed]) -> None:
        """Do what is ``owed``. What fails stays owed, keeps nothing else from being done, and is raised in the end."""
        holders = await self._ledger.holders({each.key_id for each in owed})
        failed: BaseException | None = None
        for first in range(0, len(owed), _AT_ONCE):
            some = owed[first : first + _AT_ONCE]
            ended = await asyncio.gather(*(self._settle(each, holders) for each in some), return_exceptions=True)
            failed = failed or next((each for each in ended if each is not None), None)
            await self._ledger.done([each for each, error in zip(some, ended, strict=True) if error is None])
        if failed is not None:
            raise failed

    async def _settle(self, owed: Owed, holders: Mapping[str, KeyHolder]) -> None:
        if owed.refund_request_id:
            await self._limiter.refund(owed.account_id, owed.key_id, owed.refund_request_id)
        holder = holders.get(owed.key_id)
        if holder is None or not owed.charge_units:
            return  # a key that is gone is charged nothing
        plan = self._policies.of(holder.account).plans[holder.account.plan]
        charged = counters(holder.account, plan, holder.key)
        await self._limiter.adjust(owed.account_id, charged, owed.charge_units, once=owed.record_id)

    async def sweep(self, older_than: int = LEFT_ALONE, most: int = _MOST) -> int:
        """Do what others have left undone for ``older_than`` microseconds, and return how much that was."""
        owed = await self._ledger.pending(older_than, most)
        if owed:
            await self(owed)
        return len(owed)

    async def run(self, on_trouble: Callable[[Exception | None], None] = lambda _: None) -> None:
        """Sweep for ever: at once while there is a lot, every 2 seconds else, and after failures ever more seldom.

        ``on_trouble`` is told the first failure of several, and None when it is over.
        """
        wait, failing = _IDLE_SECONDS, False
        while True:
            try:
                found = await self.sweep()
            except Exception as error:  # noqa: BLE001 - whatever it was, the next time it may go through
                if not failing:
                    on_trouble(error)
                failing, wait = True, min(2 * wait, _LONGEST_WAIT_SECONDS)
            else:
                if failing and found:
                    on_trouble(None)
                    failing = False
                wait = 0.0 if found == _MOST else _IDLE_SECONDS
            await asyncio.sleep(wait)
