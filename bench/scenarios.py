"""The measured scenarios: each is load of one kind on one server, run many times."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from bench.asking import MOST, SERVICE, batch, check, usage
from bench.bodies import changing
from bench.figures import Figures, figures
from bench.h2load import Answered, Flight, H2load
from bench.process import Process
from bench.world import Served

SATURATED = Flight(connections=4, streams=16)
ALONE = Flight(connections=1, streams=1)
FEW = Flight(connections=4, streams=1)
MANY = Flight(connections=64, streams=1)
TWICE = Flight(connections=2 * MANY.connections, streams=1)
BATCH = 256
_FEWEST = 10 * TWICE.connections

_HEADERS = {"content-type": "application/grpc", "te": "trailers"}


@dataclass(slots=True)
class Scenario:
    """One line of the report. ``send`` makes so many calls of ``checks`` checks each on ``process``."""

    name: str
    process: Process
    send: Callable[[int], Answered]
    guess: int
    checks: int = 1
    informative: bool = False
    """No target is measured by it: half the time does."""
    beside: Callable[[], float] | None = None
    """Seconds of CPU that a store has taken until now, where that is measured, too."""
    fewest: int = 16
    """So many calls a round, or more: none of its connections may be without one."""
    rounds: list[Figures] = field(default_factory=list)
    beside_us: list[float] = field(default_factory=list)
    """Microseconds of a store's CPU for one check, round by round."""
    others: float = 0.0
    """The largest share of the server's core, in any round, that was not the server's."""
    _calls: int = 0

    def run(self, seconds: float) -> None:
        """Run a round of about that long; before the first, a short one that warms up and tells how much that is."""
        if not self._calls:
            first = self.send(self.guess)
            wanted = seconds / 2 if self.informative else seconds
            self._calls = max(self.fewest, round(first.calls * wanted / first.seconds))
        before = self.process.busy()
        beside = self.beside() if self.beside else 0.0
        answered = self.send(self._calls)
        if self.beside:
            self.beside_us.append((self.beside() - beside) / (answered.calls * self.checks) * 1e6)
        busy = self.process.busy() - before
        self.rounds.append(
            figures(
                checks=answered.calls * self.checks,
                seconds=answered.seconds,
                cpu_seconds=busy.own,
                latencies_us=answered.latencies_us,
            )
        )
        self.others = max(self.others, busy.others)


def floor(h2load: H2load, echo: Process, served: Served, flight: Flight = SATURATED) -> Scenario:
    """Every check of ``served``, sent to a server that decides nothing."""
    send = _checks(h2load, echo, served, flight)
    name = _named("floor: bare grpc.aio echo" if flight is SATURATED else "floor", flight)
    return Scenario(name, echo, send, guess=1_000, informative=flight == ALONE, fewest=_FEWEST)


def check_key(h2load: H2load, served: Served, flight: Flight = SATURATED) -> Scenario:
    """One check a call, each of another key."""
    send = _checks(h2load, served.process, served, flight)

    def counted(calls: int) -> Answered:
        served.expected += calls
        return send(calls)

    name = _named(f"CheckKey, {len(served.secrets):,} keys", flight)
    return Scenario(name, served.process, counted, guess=1_000, informative=flight == ALONE, fewest=_FEWEST)


def batch_check_keys(h2load: H2load, served: Served) -> Scenario:
    """256 checks a call; each run takes other keys."""
    bodies = (batch(keys).SerializeToString() for keys in _windows(served.secrets, BATCH))
    send = _sender(h2load, served.process, served.headers, "BatchCheckKeys", FEW)

    def counted(calls: int) -> Answered:
        served.expected += calls * BATCH
        return send(itertools.islice(bodies, 1), calls)

    return Scenario(f"BatchCheckKeys of {BATCH}", served.process, counted, guess=50, checks=BATCH)


def record_usage(served: Served, *, informative: bool = False) -> Scenario:
    """1,000 records a call, by a Python client: each record must be new, which h2load cannot do."""
    key_ids = itertools.cycle(served.key_ids)
    return Scenario(
        f"RecordUsage of {MOST:,}",
        served.process,
        lambda calls: served.client.record(usage(key_ids, calls)),
        guess=4,
        checks=MOST,
        informative=informative,
    )


def _named(name: str, flight: Flight) -> str:
    return {SATURATED: name, ALONE: f"{name}, one at a time"}.get(flight, f"{name}, {flight.connections} connections")


def _checks(h2load: H2load, process: Process, served: Served, flight: Flight) -> Callable[[int], Answered]:
    bodies = itertools.cycle([check(secret).SerializeToString() for secret in served.secrets])
    send = _sender(h2load, process, served.headers, "CheckKey", flight)
    return lambda calls: send(bodies, calls)


def _sender(
    h2load: H2load, process: Process, headers: dict[str, str], method: str, flight: Flight
) -> Callable[[Iterator[bytes], int], Answered]:
    url = f"http://{process.address}{SERVICE}/{method}"

    def send(bodies: Iterator[bytes], calls: int) -> Answered:
        with changing(bodies) as body:
            return h2load.post(url, body, _HEADERS | headers, flight, calls)

    return send


def _windows(values: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    """Yield ``size`` values at a time, round and round."""
    endless = itertools.cycle(values)
    while True:
        yield list(itertools.islice(endless, size))
