"""LastUsed: collected, written now and then, never lost to a store that is away."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from formgate_server.core.errors import UnavailableError
from formgate_server.core.last_used import LastUsed


class Noted:
    """As much of a Registry as is used; it may be slow, or away."""

    def __init__(self) -> None:
        self.writes: list[dict[str, tuple[int, str]]] = []
        self.gate: asyncio.Event | None = None
        self.broken = False

    async def note_used(self, last_used: Mapping[str, tuple[int, str]]) -> None:
        """See ``Registry``."""
        if self.gate is not None:
            await self.gate.wait()
        if self.broken:
            raise UnavailableError("The database is away.")
        self.writes.append(dict(last_used))

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"it has no business with {name}")


async def test_many_uses_are_one_write() -> None:
    """The latest of each key, in one call; the next time only what is new."""
    registry, last_used = Noted(), LastUsed()
    for time in range(1_000):
        last_used.note(f"k{time % 3}", time, f"192.0.2.{time % 256}")
    await last_used.flush(registry)
    assert registry.writes == [
        {"k0": (999, "192.0.2.231"), "k1": (997, "192.0.2.229"), "k2": (998, "192.0.2.230")},
    ]
    last_used.note("k1", 1_001, "")
    await last_used.flush(registry)
    assert registry.writes[1:] == [{"k1": (1_001, "")}]


async def test_nothing_used_is_no_write() -> None:
    """An idle server leaves its database alone."""
    registry, last_used = Noted(), LastUsed()
    await last_used.flush(registry)
    last_used.note("k1", 1, "")
    await last_used.flush(registry)
    await last_used.flush(registry)
    assert len(registry.writes) == 1


async def test_what_could_not_be_written_is_kept_for_the_next_time() -> None:
    """A use since then wins over it; the failure is nobody's."""
    registry, last_used = Noted(), LastUsed()
    last_used.note("k1", 1, "old")
    last_used.note("k2", 2, "old")
    registry.broken, registry.gate = True, asyncio.Event()
    flush = asyncio.create_task(last_used.flush(registry))
    await asyncio.sleep(0)
    last_used.note("k1", 3, "new")
    registry.gate.set()
    await flush
    registry.broken = False
    await last_used.flush(registry)
    assert registry.writes == [{"k1": (3, "new"), "k2": (2, "old")}]


async def test_a_use_during_a_write_is_of_the_next_one() -> None:
    """Neither lost nor written twice."""
    registry, last_used = Noted(), LastUsed()
    last_used.note("k1", 1, "")
    registry.gate = asyncio.Event()
    flush = asyncio.create_task(last_used.flush(registry))
    await asyncio.sleep(0)
    last_used.note("k1", 2, "")
    registry.gate.set()
    await flush
    await last_used.flush(registry)
    assert registry.writes == [{"k1": (1, "")}, {"k1": (2, "")}]


async def test_a_write_that_is_cut_off_loses_nothing() -> None:
    """A server that ends in the middle of one writes it again at the end."""
    registry, last_used = Noted(), LastUsed()
    last_used.note("k1", 1, "")
    registry.gate = asyncio.Event()
    flush = asyncio.create_task(last_used.flush(registry))
    await asyncio.sleep(0)
    flush.cancel()
    with pytest.raises(asyncio.CancelledError):
        await flush
    registry.gate.set()
    await last_used.flush(registry)
    assert registry.writes == [{"k1": (1, "")}]


async def test_a_fault_ends_no_writing() -> None:
    """Whatever a write raises is told, and the next one comes."""
    registry, last_used = Noted(), LastUsed()
    faults: list[Exception] = []
    last_used.note("k1", 1, "")

    written = asyncio.Event()
    noted = registry.note_used

    async def at_first_broken(last_used: Mapping[str, tuple[int, str]]) -> None:
        if not faults:
            raise RuntimeError("permission denied")
        await noted(last_used)
        written.set()

    registry.note_used = at_first_broken  # type: ignore[method-assign]
    writing = asyncio.create_task(last_used.run(registry, 0.001, faults.append))
    async with asyncio.timeout(5):
        await written.wait()
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    assert (len(faults), registry.writes) == (1, [{"k1": (1, "")}])
