"""Who wants to be told of the new epochs of which accounts, and what is still to be told."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from formgate_server.core.errors import InvalidArgumentError, UnavailableError

MOST_WATCHED = 10_000
_MOST_WATCHERS = 1_000


class Watcher:
    """One who watches. What it has not taken yet is at most one epoch an account, the newest."""

    def __init__(self, watching: Watching) -> None:
        self._watching = watching
        self._pending: dict[str, int] = {}
        self._asked = False
        self._woken = asyncio.Event()
        self._over: BaseException | None = None
        self.accounts: set[str] = set()

    def add(self, account_ids: Iterable[str]) -> None:
        """Watch these, too. Raises InvalidArgumentError where they are too many."""
        new = set(account_ids) - self.accounts
        if len(self.accounts) + len(new) > MOST_WATCHED:
            raise InvalidArgumentError("watch", f"more than {MOST_WATCHED} accounts are watched by this call")
        self.accounts |= new
        for each in new:
            self._watching.by_account.setdefault(each, set()).add(self)

    def forget(self, account_ids: Iterable[str]) -> None:
        """Watch these no more."""
        for each in self.accounts.intersection(account_ids):
            self.accounts.discard(each)
            self._pending.pop(each, None)
            watchers = self._watching.by_account[each]
            watchers.discard(self)
            if not watchers:
                del self._watching.by_account[each]

    def tell(self, account_id: str, epoch: int) -> None:
        """Have it told. An epoch of 0, not known, is told even where another is pending: it ends every lease."""
        known = self._pending.get(account_id)
        if known is None or (known and (epoch > known or not epoch)):
            self._pending[account_id] = epoch
        self._woken.set()

    def acknowledge(self) -> None:
        """Have something told, if nothing else then that there is nothing."""
        self._asked = True
        self._woken.set()

    def end(self, error: BaseException | None) -> None:
        """End it; ``error`` is raised by ``news``."""
        self._over = self._over or error or _Ended()
        self._woken.set()

    async def news(self) -> Mapping[str, int] | None:
        """Wait for new epochs, and take them; None: it is over."""
        while not (self._pending or self._asked):
            if self._over is not None:
                if isinstance(self._over, _Ended):
                    return None
                raise self._over
            self._woken.clear()
            await self._woken.wait()
        pending, self._pending, self._asked = self._pending, {}, False
        return pending


class _Ended(Exception):  # noqa: N818 - it is none
    pass


class Watching:
    """All who watch."""

    def __init__(self) -> None:
        self.by_account: dict[str, set[Watcher]] = {}
        self._watchers: set[Watcher] = set()
        self._ended = False

    def tell(self, account_id: str, epoch: int) -> None:
        """Tell those who watch the account of its epoch."""
        for watcher in self.by_account.get(account_id, ()):
            watcher.tell(account_id, epoch)

    def lost(self) -> None:
        """Tell all that something may have been missed: no epoch is known."""
        for account_id, watchers in self.by_account.items():
            for watcher in watchers:
                watcher.tell(account_id, 0)

    @contextmanager
    def watcher(self) -> Iterator[Watcher]:
        """Add one for a while. Raises UnavailableError where there are too many, or all is ending."""
        if self._ended or len(self._watchers) >= _MOST_WATCHERS:
            message = "this server is ending" if self._ended else "too many calls watch epochs here"
            raise UnavailableError(message, reason="TOO_MANY_WATCHERS")
        watcher = Watcher(self)
        self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            watcher.forget(set(watcher.accounts))
            self._watchers.discard(watcher)

    def end(self) -> None:
        """End all, and take no more."""
        self._ended = True
        for watcher in self._watchers:
            watcher.end(None)
