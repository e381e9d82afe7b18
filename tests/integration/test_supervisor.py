"""The supervisor, over real processes that serve nothing: it keeps them running, and ends them."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from structlog.testing import capture_logs

from formgate_server.workers.supervisor import Supervisor, Times, WorkerRefusedError
from tests.support import fake_worker

SECONDS = 60.0
"""After which whatever has not come is not coming; a busy machine takes a second to start a process."""
QUICK = Times(
    first_backoff=0.05, longest_backoff=0.2, healthy=60.0, starting=30.0, hung=2.5, ending=1.0, tick=0.05
)  # fmt: skip
ENDED = "a worker ended: another is started"

Log = list[Any]


class Workers:
    """A folder of plans, and the supervisor of the workers that follow them."""

    def __init__(
        self, folder: Path, number: int, times: Times, drain_seconds: float, python: Path = Path(sys.executable)
    ) -> None:
        self.folder = folder
        command = (str(python), "-I", fake_worker.__file__, str(folder))
        self.supervisor = Supervisor(command, b'"hello"', number, drain_seconds, times)
        self.announced = 0

    def announce(self) -> None:
        """Note that all are ready."""
        self.announced += 1

    def starts(self, number: int) -> list[int]:
        """Return the processes that were started as this worker, the newest last."""
        file = self.folder / f"starts-{number}"
        return [int(pid) for pid in file.read_text().split()] if file.exists() else []

    @property
    def ready(self) -> int:
        """How many are ready."""
        return sum(facts.ready for facts in self.supervisor.facts())

    async def until(self, reached: Callable[[], object], seconds: float = SECONDS) -> None:
        """Wait until something is so."""
        async with asyncio.timeout(seconds):
            while not reached():  # noqa: ASYNC110 - what is waited for is another process
                await asyncio.sleep(0.01)


@pytest.fixture
def log() -> Iterator[Log]:
    """What is logged."""
    with capture_logs() as logged:
        yield logged


@asynccontextmanager
async def running(
    folder: Path,
    number: int,
    *plans: str,
    times: Times = QUICK,
    drain_seconds: float = 30,
    wait: bool = True,
    python: Path = Path(sys.executable),
) -> AsyncIterator[tuple[Workers, asyncio.Task[None]]]:
    """Run ``number`` workers that follow ``plans`` for a while, and see that none is left."""
    for each, plan in enumerate(plans, 1):
        (folder / f"plan-{each}").write_text(plan)
    workers = Workers(folder, number, times, drain_seconds, python)
    task = asyncio.create_task(workers.supervisor.run(workers.announce))
    try:
        if wait:
            await workers.until(lambda: workers.announced or task.done())
        yield workers, task
    finally:
        workers.supervisor.drain()
        workers.supervisor.drain()
        with suppress(WorkerRefusedError):
            await asyncio.wait_for(task, SECONDS)
        left = {pid for each in range(1, number + 1) for pid in workers.starts(each) if psutil.pid_exists(pid)}
        assert not left


async def test_it_is_started_once_all_are_ready(tmp_path: Path) -> None:
    """It says so once, when every worker has said so; each was told the same, and has its number."""
    async with running(tmp_path, 3) as (workers, _):
        assert (workers.announced, workers.ready) == (1, 3)
        assert {(tmp_path / f"hello-{number}").read_text() for number in (1, 2, 3)} == {'"hello"\n'}
        assert [(facts.number, facts.pid) for facts in workers.supervisor.facts()] == [
            (number, workers.starts(number)[0]) for number in (1, 2, 3)
        ]
        os.kill(workers.starts(2)[0], signal.SIGKILL)
        await workers.until(lambda: len(workers.starts(2)) == 2 and workers.ready == 3)
        assert workers.announced == 1


async def test_it_is_not_started_while_one_is_missing(tmp_path: Path) -> None:
    """One of two is ready: nobody is told to go on, though calls are answered."""
    async with running(tmp_path, 2, "serve", "mute", wait=False) as (workers, _):
        await workers.until(lambda: workers.ready == 1 and workers.starts(2))
        await asyncio.sleep(0.2)
        assert workers.announced == 0
        assert workers.supervisor.live()
        assert workers.supervisor.ready()


@pytest.mark.parametrize(
    ("plan", "number", "why"),
    [
        ("serve", signal.SIGKILL, "killed by SIGKILL"),
        ("serve", signal.SIGSTOP, "it stood still"),
        ("still", None, "it stood still"),
        ("die", None, "exit code 3"),
    ],
)
async def test_a_worker_that_ends_or_stands_still_is_replaced(
    tmp_path: Path, log: Log, plan: str, number: signal.Signals | None, why: str
) -> None:
    """Whether it is dead, frozen, or its heart beats no more; the log says why, and the other goes on."""
    async with running(tmp_path, 2, "serve", plan) as (workers, _):
        if number is not None:
            os.kill(workers.starts(2)[0], number)
        await workers.until(lambda: len(workers.starts(2)) == 2 and workers.ready == 2)
        assert len(workers.starts(1)) == 1
        assert [(line["worker"], line["why"]) for line in log if line["event"] == ENDED] == [(2, why)]
        assert [facts.restarts for facts in workers.supervisor.facts()] == [0, 1]
        await workers.until(lambda: not psutil.pid_exists(workers.starts(2)[0]))


async def test_one_that_never_says_a_word_is_killed(tmp_path: Path, log: Log) -> None:
    """It has longer for its first beat, not for ever."""
    times = Times(first_backoff=0.05, starting=3.0, hung=0.5, ending=1.0, tick=0.05)
    async with running(tmp_path, 1, "mute", times=times) as (workers, _):
        assert len(workers.starts(1)) == 2
        assert [line["why"] for line in log if line["event"] == ENDED] == ["it stood still"]


async def test_each_failure_is_waited_for_longer(tmp_path: Path, log: Log) -> None:
    """Twice as long each time, up to the longest, and at random between half of it and all of it."""
    async with running(tmp_path, 1, "die " * 6) as (workers, _):
        await workers.until(lambda: len(workers.starts(1)) == 7)
    waited = [line["seconds"] for line in log if line["event"] == ENDED]
    longest = [0.05, 0.1, 0.2, 0.2, 0.2, 0.2]
    assert len(waited) == len(longest)
    assert all(most / 2 <= seconds <= most for seconds, most in zip(waited, longest, strict=True))
    assert len(set(waited[2:])) > 1  # told in milliseconds, two of four may well be alike


async def test_who_has_served_for_long_is_not_waited_for(tmp_path: Path, log: Log) -> None:
    """Its failure is the first again."""
    times = Times(first_backoff=0.05, longest_backoff=10.0, healthy=0.0, ending=1.0, tick=0.05)
    async with running(tmp_path, 1, "die " * 5, times=times) as (workers, _):
        await workers.until(lambda: len(workers.starts(1)) == 6)
    assert max(line["seconds"] for line in log if line["event"] == ENDED) <= 0.05


@pytest.mark.parametrize(
    ("plan", "why"),
    [
        ("refuse", "worker 2 does not like it here"),
        ("crash", "worker 2 ended before it was ready: exit code 3"),
    ],
)
async def test_who_can_not_start_ends_it_all_at_first(tmp_path: Path, plan: str, why: str) -> None:
    """A setting that will not do is for whoever types the command: all end, those too that only start."""
    async with running(tmp_path, 3, "serve", plan, "mute", wait=False) as (workers, task):
        with pytest.raises(WorkerRefusedError, match=f"^{why}$"):
            await asyncio.wait_for(asyncio.shield(task), SECONDS)
        assert workers.announced == 0
        assert len(workers.starts(2)) == 1


async def test_killed_while_it_starts_it_is_started_again(tmp_path: Path) -> None:
    """Whoever kills a process says nothing about the settings."""
    async with running(tmp_path, 1, "mute", wait=False) as (workers, _):
        await workers.until(lambda: workers.starts(1))
        os.kill(workers.starts(1)[0], signal.SIGKILL)
        await workers.until(lambda: workers.announced)


async def test_who_can_not_start_later_is_tried_again(tmp_path: Path, log: Log) -> None:
    """There are calls to answer: the other goes on, and it is tried until it serves."""
    async with running(tmp_path, 2, "serve", "serve refuse crash refuse") as (workers, _):
        # Not by itself ("die"): it might, before the other is ready, and then a refusal would end it all.
        os.kill(workers.starts(2)[0], signal.SIGKILL)
        await workers.until(lambda: len(workers.starts(2)) == 5 and workers.ready == 2)
        assert len(workers.starts(1)) == 1
    refusal = "worker 2 does not like it here"
    assert [line["why"] for line in log if line["event"] == ENDED] == [
        "killed by SIGKILL",
        refusal,
        "exit code 3",
        refusal,
    ]


async def test_no_process_can_be_started(tmp_path: Path, log: Log) -> None:
    """At first that ends it; later it is tried again, as whatever else keeps a worker from starting."""
    python = tmp_path / "python"
    workers = Workers(tmp_path, 1, QUICK, 1.0, python)
    with pytest.raises(WorkerRefusedError, match=r"no process can be started: .*No such file"):
        await workers.supervisor.run(workers.announce)
    python.symlink_to(sys.executable)
    async with running(tmp_path, 1, python=python) as (workers, _):
        python.unlink()
        os.kill(workers.starts(1)[0], signal.SIGKILL)
        await workers.until(lambda: len([line for line in log if line["event"] == ENDED]) > 2)
        assert not workers.supervisor.ready()
        python.symlink_to(sys.executable)
        await workers.until(workers.supervisor.ready)


async def test_drained_they_end_and_it_does(tmp_path: Path) -> None:
    """It is not ready from then on; nobody is replaced."""
    async with running(tmp_path, 2) as (workers, task):
        assert workers.supervisor.ready()
        workers.supervisor.drain()
        assert not workers.supervisor.ready()
        assert workers.supervisor.live()
        await asyncio.wait_for(task, SECONDS)
        assert [len(workers.starts(number)) for number in (1, 2)] == [1, 1]


@pytest.mark.parametrize("plan", ["deaf", "still"])
async def test_who_does_not_end_is_ended(tmp_path: Path, plan: str) -> None:
    """The drain's time and a little more is all that it gets."""
    times = Times(hung=30.0, ending=0.3, tick=0.05)
    async with running(tmp_path, 2, "serve", plan, times=times, drain_seconds=0.5) as (workers, task):
        began = time.monotonic()
        workers.supervisor.drain()
        await asyncio.wait_for(task, SECONDS)
        assert time.monotonic() - began >= 0.8


async def test_drained_again_they_hurry(tmp_path: Path) -> None:
    """Who still has calls under way drops them; who is deaf to that is killed soon."""
    async with running(tmp_path, 2, "slow", "deaf", drain_seconds=3_600) as (workers, task):
        workers.supervisor.drain()
        await asyncio.sleep(0.3)
        assert not task.done()
        workers.supervisor.drain()
        await asyncio.wait_for(task, SECONDS)


async def test_drained_while_it_waits_to_start_one(tmp_path: Path, log: Log) -> None:
    """A worker that is about to be started again is not."""
    times = Times(first_backoff=3_600, longest_backoff=3_600, tick=0.05)
    # They may never be ready at once, so that nothing is announced.
    async with running(tmp_path, 2, "serve", "die", times=times, wait=False) as (workers, task):
        await workers.until(lambda: workers.ready == 1 and any(each["event"] == ENDED for each in log))
        workers.supervisor.drain()
        await asyncio.wait_for(task, SECONDS)
        assert len(workers.starts(2)) == 1


async def test_drained_while_one_starts(tmp_path: Path) -> None:
    """It gets as long as the others; told to hurry, it is killed: it serves nobody."""
    async with running(tmp_path, 2, "serve", "mute", wait=False, drain_seconds=3_600) as (workers, task):
        await workers.until(lambda: workers.ready == 1 and workers.starts(2))
        workers.supervisor.drain()
        workers.supervisor.drain()
        await asyncio.wait_for(task, SECONDS)


async def test_renewed_one_after_the_other(tmp_path: Path) -> None:
    """Each is replaced, without a wait, and never are two of them away."""
    async with running(tmp_path, 3, times=Times(first_backoff=3_600, tick=0.05)) as (workers, _):
        workers.supervisor.renew()
        workers.supervisor.renew()  # at a time
        fewest = 3

        def renewed() -> bool:
            nonlocal fewest
            fewest = min(fewest, workers.ready)
            return workers.ready == 3 and all(len(workers.starts(number)) == 2 for number in (1, 2, 3))

        await workers.until(renewed)
        assert fewest == 2
        assert workers.announced == 1
        workers.supervisor.renew()
        await workers.until(lambda: all(len(workers.starts(number)) == 3 for number in (1, 2, 3)))


async def test_a_renewal_that_fails_stops_at_the_first(tmp_path: Path) -> None:
    """What the first fresh one does not like keeps the others as they are; when it serves after all, it goes on."""
    async with running(tmp_path, 2, "serve " + "refuse " * 4) as (workers, _):
        workers.supervisor.renew()
        await workers.until(lambda: len(workers.starts(1)) == 4)
        assert len(workers.starts(2)) == 1
        await workers.until(lambda: len(workers.starts(2)) == 2 and workers.ready == 2)


async def test_it_blames_nobody_for_its_own_sleep(tmp_path: Path) -> None:
    """When it, or the machine, stood still, it has heard nobody: that is no reason to kill them."""
    async with running(tmp_path, 2, times=Times(hung=0.5, tick=0.05)) as (workers, _):
        time.sleep(2)  # noqa: ASYNC251 - this is it
        await asyncio.sleep(0.3)
        assert [len(workers.starts(number)) for number in (1, 2)] == [1, 1]
        assert workers.ready == 2


async def test_it_lives_while_a_heart_beats(tmp_path: Path) -> None:
    """One of two is enough to be alive and ready; none, or a supervisor that does not move itself, is neither."""
    times = Times(first_backoff=3_600, longest_backoff=3_600, hung=1.0, tick=0.05)
    async with running(tmp_path, 2, times=times) as (workers, _):
        supervisor = workers.supervisor
        os.kill(workers.starts(1)[0], signal.SIGKILL)
        await workers.until(lambda: workers.ready == 1)
        assert (supervisor.live(), supervisor.ready()) == (True, True)
        time.sleep(1.5)  # noqa: ASYNC251 - its own loop does not run
        assert (supervisor.live(), supervisor.ready()) == (False, False)
        await workers.until(supervisor.ready)
        os.kill(workers.starts(2)[0], signal.SIGKILL)
        await workers.until(lambda: not supervisor.live())
        assert not supervisor.ready()
