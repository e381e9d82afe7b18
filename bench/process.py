"""The processes under load: each on one core, their CPU time and what else that core did."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import psutil

_ADDRESS = re.compile(r"\b(?:grpc|http) (?P<address>\S+?)(?:,|$)")


class Cores(NamedTuple):
    """Which core serves and which one makes the load."""

    server: int
    load: int


def two_cores() -> Cores:
    """Choose the cores, and keep this process and all that it starts (but for servers) off the server's."""
    if sys.platform != "linux":
        raise SystemExit("bench: pins processes to cores, which it knows how to do on Linux only")
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        raise SystemExit("bench: two cores are needed, one for the server and one for the load")
    cores = Cores(usable[0], usable[1])
    os.sched_setaffinity(0, {cores.load})
    return cores


@dataclass(frozen=True, slots=True)
class Busy:
    """Seconds: of the clock, of CPU time that a process took, of all that its core was busy."""

    clock: float
    own: float
    core: float
    """Of several cores: the sum."""

    def __sub__(self, earlier: Busy) -> Busy:
        return Busy(self.clock - earlier.clock, self.own - earlier.own, self.core - earlier.core)

    @property
    def others(self) -> float:
        """The share of the core that was busy with something else."""
        return max(0.0, self.core - self.own) / self.clock


class Process:
    """A server on cores of its own, from the line that says ``grpc HOST:PORT``, or ``http``, until it has drained."""

    def __init__(
        self, command: Sequence[str], *cores: int, logs: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.cores = cores
        self.logs = logs
        with logs.open("ab") as log:
            self._process = subprocess.Popen(
                ["taskset", "--cpu-list", ",".join(map(str, cores)), *command],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
            )
        assert self._process.stdout is not None
        ready = _ADDRESS.search(self._process.stdout.readline().strip())
        if ready is None:
            self._process.kill()
            raise SystemExit(f"bench: did not start: {' '.join(command)}\n{logs.read_text(errors='replace')}")
        self.address: str = ready["address"]
        self._seen = psutil.Process(self._process.pid)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def busy(self) -> Busy:
        """Return what it and its core have done until now: user and system time, of all its threads and children."""
        times = [one.cpu_times() for one in (self._seen, *self._seen.children(recursive=True))]
        every = psutil.cpu_times(percpu=True)
        cores = [every[number] for number in self.cores]
        return Busy(
            time.monotonic(),
            sum(one.user + one.system for one in times),
            sum(sum(one) - one.guest - one.guest_nice - one.idle - one.iowait for one in cores),
        )

    def resident(self) -> int:
        """Return the bytes of memory that it has."""
        return int(self._seen.memory_info().rss)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
