"""A worker process, as its supervisor sees it: from its start to its end."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Self

import structlog

_log = structlog.get_logger("formgate.workers")


class Child:
    """One process, and what it has told."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        on_ready: Callable[[], None],
    ) -> None:
        self._process = process
        self._writer = writer
        self._on_ready = on_ready
        self.is_ready = False
        """Whether it takes calls, and is to."""
        self.has_served = False
        self.refusal: str | None = None
        """Why it can not start, in its own words."""
        self.verdict: str | None = None
        """Why we killed it."""
        self.beats = False
        """Whether its heart has ever beaten."""
        self.last_beat = self.began = time.monotonic()
        self.deadline: float | None = None
        """When it must have ended, since it was asked to."""
        self.garbage: list[dict[str, int]] = []
        """What ``gc.get_stats`` said there, with its last beat."""
        self._hearing = asyncio.create_task(self._hear(reader))

    @classmethod
    async def start(cls, command: Sequence[str], hello: bytes, on_ready: Callable[[], None]) -> Self:
        """Start ``command`` and say ``hello``. ``on_ready`` is called when it says that it serves."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(*command, stdin=theirs.fileno())
        except BaseException:
            ours.close()
            raise
        reader, writer = await asyncio.open_connection(sock=ours)
        child = cls(process, reader, writer, on_ready)
        child._tell(hello)
        return child

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    async def ended(self) -> str:
        """Wait for its end; returns why it ended."""
        code = await self._process.wait()
        # What it said last may still be on its way; what it never said is over with the socket.
        with suppress(TimeoutError):
            await asyncio.wait_for(self._hearing, 1)
        self.is_ready = False
        self._writer.close()
        if self.refusal is not None:
            return self.refusal
        return self.verdict or (f"killed by {_name(-code)}" if code < 0 else f"exit code {code}")

    @property
    def was_killed(self) -> bool:
        """Whether a signal has ended it."""
        return (self._process.returncode or 0) < 0

    def drain(self, seconds: float) -> None:
        """Ask it to take no new calls and end, within ``seconds``."""
        self.is_ready = False
        if self.deadline is None:
            self.deadline = time.monotonic() + seconds
            self._tell(b'"drain"')

    def hurry(self, seconds: float) -> None:
        """Ask it to end now, within ``seconds``; one that serves nobody yet does not listen either, and is killed."""
        if not self.has_served:
            self.kill("it was not ready yet")
        self.is_ready = False
        self.deadline = min(time.monotonic() + seconds, self.deadline or float("inf"))
        self._tell(b'"hurry"')

    def kill(self, why: str) -> None:
        """End it at once, frozen or not."""
        self.verdict = self.verdict or why
        with suppress(ProcessLookupError):
            self._process.kill()

    def _tell(self, line: bytes) -> None:
        if not self._writer.is_closing():
            self._writer.write(line + b"\n")

    async def _hear(self, reader: asyncio.StreamReader) -> None:
        with suppress(ConnectionError, ValueError):  # a line without end: who says no more is killed for that
            async for line in reader:
                with suppress(ValueError):  # half of a line: for a long time nobody read it
                    self._heard(json.loads(line))

    def _heard(self, told: dict[str, Any]) -> None:
        if "beat" in told:
            self.beats = True
            self.last_beat = time.monotonic()
            self.garbage = told["beat"]
        elif "refused" in told:
            self.refusal = str(told["refused"])
        elif "ready" in told:
            self.has_served = True
            self.is_ready = self.deadline is None
            if self.is_ready:
                self._on_ready()


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
