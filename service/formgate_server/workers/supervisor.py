"""Keeps workers running: starts another when one ends or stands still, drains them all, renews one after the other."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import structlog

from formgate_server.metrics.of_workers import WorkerFacts
from formgate_server.workers.child import Child

_log = structlog.get_logger("formgate.workers")


@dataclass(frozen=True)
class Times:
    """How long what may take, in seconds."""

    first_backoff: float = 0.2
    longest_backoff: float = 10.0
    """Before a worker is started again: twice as long each time, and somewhere between half of it and all of it."""
    healthy: float = 60.0
    """A worker that has served for so long was in good order: the next one's backoff is the first again."""
    starting: float = 60.0
    """Until its heart beats for the first time: it reads much code, perhaps from a slow disk."""
    hung: float = 10.0
    """Without a beat, whereafter it is killed. As long as /livez of a single process waits."""
    ending: float = 10.0
    """Beyond the drain, to close its stores, or when it was told to hurry."""
    tick: float = 1.0
    """How often all this is looked at."""


class WorkerRefusedError(Exception):
    """Why the first workers can not start."""


@dataclass(eq=False)
class _Slot:
    """A worker's place: one process after the other."""

    number: int
    child: Child | None = None
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    failures: int = 0
    """In a row."""
    restarts: int = 0
    renewing: bool = False


class Supervisor:
    """Runs ``workers`` processes of ``command``, to which the worker's number (from 1) is added."""

    def __init__(
        self, command: Sequence[str], hello: bytes, workers: int, drain_seconds: float, times: Times | None = None
    ) -> None:
        self._command = command
        self._hello = hello
        self._drain_seconds = drain_seconds
        self._times = times or Times()
        self._slots = [_Slot(number) for number in range(1, workers + 1)]
        self._ending = asyncio.Event()
        self._refusal: str | None = None
        self._renewal: asyncio.Task[None] | None = None
        self._began = self._last_tick = time.monotonic()
        self.started = False
        """Whether all workers were ready, once."""

    async def run(self, on_started: Callable[[], None]) -> None:
        """Run until ``drain`` has been called and all workers have ended; ``on_started`` when all are ready.

        Raises WorkerRefusedError where a worker can not start, if that is so from the start. Later there are calls to
        be answered: then the others go on, and it is tried again.
        """
        watch = asyncio.create_task(self._watch())
        try:
            await asyncio.gather(*(self._keep(slot, on_started) for slot in self._slots))
        finally:
            self._ending.set()
            watch.cancel()
            for child in self._children():
                child.kill("its supervisor has a fault")
        if self._refusal is not None:
            raise WorkerRefusedError(self._refusal)

    def drain(self) -> None:
        """Have every worker end its calls, and end. Again: have it end now."""
        again = self._ending.is_set()
        self._ending.set()
        _log.info("hurrying" if again else "draining")
        for child in self._children():
            if again:
                child.hurry(self._times.ending)
            else:
                child.drain(self._drain_seconds + self._times.ending)

    def renew(self) -> None:
        """Replace every worker by a fresh one, one after the other: the next only when the last one's heir serves."""
        if self.started and not self._ending.is_set() and (self._renewal is None or self._renewal.done()):
            self._renewal = asyncio.create_task(self._renew())

    # What /livez, /readyz and /metrics ask, from another thread.

    def live(self) -> bool:
        """Whether this supervisor runs, and a worker's heart beats; while all start for the first time, it may yet."""
        now = time.monotonic()
        if now - self._last_tick > self._times.tick + self._times.hung:
            return False
        if not self.started and now - self._began < self._times.starting:
            return True
        return any(child.beats and now - child.last_beat < self._times.hung for child in self._children())

    def ready(self) -> bool:
        """Whether calls are wanted, and a worker takes them."""
        return self.live() and not self._ending.is_set() and any(child.is_ready for child in self._children())

    def facts(self) -> list[WorkerFacts]:
        """Return what is known of each worker."""
        facts = []
        for slot in self._slots:
            child = slot.child
            if child is None:
                facts.append(WorkerFacts(slot.number, None, ready=False, restarts=slot.restarts, garbage=()))
            else:
                facts.append(WorkerFacts(slot.number, child.pid, child.is_ready, slot.restarts, child.garbage))
        return facts

    # One worker's place.

    async def _keep(self, slot: _Slot, on_started: Callable[[], None]) -> None:
        while not self._ending.is_set():
            why = await self._run_one(slot, lambda: self._is_ready(slot, on_started))
            if self._ending.is_set():
                return
            slot.restarts += 1
            if not slot.renewing:
                await self._back_off(slot, why)
            slot.renewing = False

    async def _run_one(self, slot: _Slot, on_ready: Callable[[], None]) -> str:
        """Run a process until it ends; returns why it ended."""
        try:
            child = slot.child = await Child.start((*self._command, str(slot.number)), self._hello, on_ready)
        except OSError as error:
            why = f"no process can be started: {error}"
            if not self.started:
                self._refuse(slot, why)
            return why
        if self._ending.is_set():
            child.drain(self._drain_seconds + self._times.ending)
        why = await child.ended()
        slot.child = None
        slot.ready.clear()
        if child.has_served and time.monotonic() - child.began > self._times.healthy:
            slot.failures = 0
        if not (self._ending.is_set() or self.started or child.has_served or child.was_killed):
            self._refuse(slot, child.refusal or f"worker {slot.number} ended before it was ready: {why}")
        return why

    def _is_ready(self, slot: _Slot, on_started: Callable[[], None]) -> None:
        slot.ready.set()
        if not self.started and not self._ending.is_set() and all(each.ready.is_set() for each in self._slots):
            self.started = True
            on_started()
        elif self.started:
            _log.info("a worker serves", worker=slot.number)

    def _refuse(self, slot: _Slot, why: str) -> None:
        """End, because the first workers can not start. The first one's reason is told."""
        _log.debug("a worker can not start", worker=slot.number, why=why)
        self._refusal = self._refusal or why
        self._ending.set()
        for child in self._children():
            child.hurry(self._times.ending)

    async def _back_off(self, slot: _Slot, why: str) -> None:
        slot.failures = min(slot.failures + 1, 32)
        longest = min(self._times.longest_backoff, self._times.first_backoff * 2 ** (slot.failures - 1))
        delay = longest * random.uniform(0.5, 1)  # noqa: S311 - so that not all of them start at once
        _log.warning("a worker ended: another is started", worker=slot.number, why=why, seconds=round(delay, 3))
        try:
            await asyncio.wait_for(self._ending.wait(), delay)
        except TimeoutError:
            return

    # All of them.

    def _children(self) -> list[Child]:
        return [child for slot in self._slots if (child := slot.child) is not None]

    async def _watch(self) -> None:
        """Kill who stands still, or does not end though it was asked to."""
        while True:
            now = time.monotonic()
            if now - self._last_tick > 2 * self._times.tick + 1:
                # We stood still ourselves, perhaps with the whole machine, and have not heard them: none is to blame.
                for child in self._children():
                    child.last_beat = now
            self._last_tick = now
            for child in self._children():
                if child.deadline is not None and now > child.deadline:
                    child.kill("it did not end in time")
                elif now - child.last_beat > (self._times.hung if child.beats else self._times.starting):
                    child.kill("it stood still")
            await asyncio.sleep(self._times.tick)

    async def _renew(self) -> None:
        _log.info("the workers are renewed, one after the other")
        for slot in self._slots:
            child = slot.child
            if child is not None and child.is_ready:
                slot.renewing = True
                slot.ready.clear()
                child.drain(self._drain_seconds + self._times.ending)
            served, ended = (asyncio.create_task(event.wait()) for event in (slot.ready, self._ending))
            await asyncio.wait({served, ended}, return_when=asyncio.FIRST_COMPLETED)
            served.cancel()
            ended.cancel()
            if self._ending.is_set():
                return
        _log.info("the workers are renewed")
