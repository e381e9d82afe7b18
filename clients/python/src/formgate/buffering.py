"""Where usage records wait to be sent: in memory, or (``formgate.spool``) in a folder."""

from __future__ import annotations

import threading
from collections import deque
from typing import Protocol

from formgate.errors import FormgateError
from formgate.wire import MOST, MOST_BYTES


class FullError(FormgateError):
    """There is no room for another record: it was not taken."""


class Taken(Protocol):
    """Records that are being sent."""

    records: list[bytes]
    own: bool
    """Put here by this recorder; else left behind by another, which is gone."""

    def done(self) -> None:
        """Forget them: the service has them, or will never take them."""

    def leave(self) -> bool:
        """Give up sending them now; True: they are kept for a later process."""


class Buffer(Protocol):
    """Where records wait; for many threads that put and one that takes."""

    def put(self, record: bytes) -> None:
        """Keep a record. Raises FullError."""

    def take(self) -> Taken | None:
        """Return the next records, the oldest first; None: there are none."""

    def __len__(self) -> int:
        """Return how many wait, those that are being sent aside."""
        ...

    def sync(self) -> None:
        """Make what was put outlast a power cut, where that is wanted."""

    def close(self) -> None:
        """Let go of what is held; what waits is kept, or lost, as the buffer says."""

    def after_fork(self) -> None:
        """Forget, in a child, what is the parent's."""


class Memory:
    """A queue, bounded. What waits here is lost with the process."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._records: deque[bytes] = deque()
        self._sending = 0
        self._lock = threading.Lock()

    def put(self, record: bytes) -> None:
        """See ``Buffer``."""
        with self._lock:
            if len(self._records) + self._sending >= self._most:
                raise FullError(f"{self._most} usage records wait already")
            self._records.append(record)

    def take(self) -> Taken | None:
        """See ``Buffer``."""
        taken: list[bytes] = []
        size = 0
        with self._lock:
            while self._records and len(taken) < MOST:
                size += len(self._records[0]) + 8
                if taken and size > MOST_BYTES:
                    break
                taken.append(self._records.popleft())
            self._sending = len(taken)
        return _FromMemory(taken, self) if taken else None

    def __len__(self) -> int:
        return len(self._records)

    def sync(self) -> None:
        """See ``Buffer``."""

    def close(self) -> None:
        """See ``Buffer``."""

    def after_fork(self) -> None:
        """See ``Buffer``: the parent sends them."""
        self._lock = threading.Lock()
        self._records.clear()
        self._sending = 0

    def sent(self) -> None:
        """Have room again for what was taken."""
        self._sending = 0


class _FromMemory:
    """See ``Taken``."""

    own = True

    def __init__(self, records: list[bytes], memory: Memory) -> None:
        self.records = records
        self._memory = memory

    def done(self) -> None:
        """See ``Taken``."""
        self._memory.sent()

    def leave(self) -> bool:
        """See ``Taken``."""
        self._memory.sent()
        return False
