from __future__ import annotations

import asyncio
import datetime as dt
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from formgate import AsyncClient, Client, UsageRecorder
from formgate import recorder as recorder_module
from formgate.errors import ClosedError, InvalidRequestError
from formgate.options import Connection
from formgate.recorder import FullError, Outcome, Refused, Usage
from formgate.spool import Spool
from formgate.v1 import authorization_pb2 as pb
from tests.support.callers import Key, Scripted, counted, new_key, scripted
from tests.support.client import Client as Manager
from tests.support.client import new_account
from tests.support.proxy import Proxy
from tests.support.server import Server, clean_environment

pytest_plugins = ("tests.support.rpc",)


@pytest.fixture
def key(manager: Manager, account: str) -> Key:
    """A key that consumes."""
    return new_key(manager, account)


@pytest.fixture
def proxy(rpc_server: Server) -> Iterator[Proxy]:
    """What stands between the recorder and the real server."""
    with Proxy(int(rpc_server.address.rpartition(":")[2])) as proxy:
        yield proxy


@pytest.fixture
def server() -> Iterator[Scripted]:
    """A server that says what it is told to."""
    with scripted() as server:
        yield server


class Told:
    """What a recorder told of by its callbacks."""

    def __init__(self) -> None:
        self.refused: list[Refused] = []
        self.dropped: list[Usage] = []

    @property
    def callbacks(self) -> dict[str, Any]:
        """For the recorder."""
        return {"on_refused": self.refused.append, "on_drop": self.dropped.append}


def test_what_is_recorded_is_counted(rpc_server: Server, manager: Manager, account: str, key: Key) -> None:
    """Units of many records, sent together; leaving the block sends what waits."""
    with UsageRecorder(rpc_server.address, rpc_server.token, interval=60) as recorder:
        for number in range(1_500):
            recorder.record(
                key.key_id,
                2,
                operation="submissions.create",
                resource="forms/f1",
                status_code=201,
                latency=dt.timedelta(milliseconds=number),
                tags={"team": "a"},
            )
    assert counted(manager, account, key) == (3_000, 1_500)
    counters = recorder.counters
    assert (counters["put"], counters["accepted"], counters["dropped"]) == (1_500, 1_500, 0)


def test_a_record_waits_for_the_interval_at_most(rpc_server: Server, manager: Manager, account: str, key: Key) -> None:
    """A lone record is sent by itself."""
    with UsageRecorder(rpc_server.address, rpc_server.token, interval=0.05) as recorder:
        recorder.record(key.key_id)
        deadline = time.monotonic() + 10
        while counted(manager, account, key) != (1, 1):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_flush_waits_for_what_was_recorded_before(rpc_server: Server, manager: Manager, account: str, key: Key) -> None:
    """After flush() it is there; of nothing it waits for nothing."""
    with UsageRecorder(rpc_server.address, rpc_server.token, interval=60) as recorder:
        assert recorder.flush(0)
        recorder.record(key.key_id)
        assert recorder.flush(10)
        assert counted(manager, account, key) == (1, 1)


def test_from_asyncio(rpc_server: Server, manager: Manager, account: str, key: Key) -> None:
    """In a loop: record() does not wait, aflush() and leaving the block do, beside other tasks. So from the clients."""

    async def run() -> None:
        async with UsageRecorder(rpc_server.address, rpc_server.token, interval=60) as recorder:
            recorder.record(key.key_id)
            assert await recorder.aflush(10)
            recorder.record(key.key_id)
        async with AsyncClient(rpc_server.address, rpc_server.token) as client:
            client.record(key.key_id)
        with pytest.raises(ClosedError):
            client.record(key.key_id)

    asyncio.run(run())
    with Client(rpc_server.address, rpc_server.token) as client:
        client.record(key.key_id)
    with UsageRecorder(rpc_server.address, rpc_server.token) as shared:
        with Client(rpc_server.address, rpc_server.token, recorder=shared) as client:
            client.record(key.key_id)
        shared.record(key.key_id)  # who made it closes it
    assert counted(manager, account, key) == (6, 6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"units": "many"},
        {"occur_time": dt.datetime(2026, 1, 1)},  # noqa: DTZ001
        {"operation": "\ud800"},
        {"latency": 5},
        {"resource": "x" * 60_000},
    ],
    ids=lambda wrong: str(wrong)[:60],
)
def test_what_is_no_record_is_said_at_once(wrong: dict[str, Any], rpc_server: Server) -> None:
    """To who made the mistake, not to a log."""
    with UsageRecorder(rpc_server.address, rpc_server.token) as recorder, pytest.raises(InvalidRequestError):
        recorder.record("k", **wrong)
    with pytest.raises(ClosedError):
        recorder.record("k")


@pytest.mark.parametrize(
    "wrong",
    [{"interval": 0}, {"interval": -1}, {"interval": float("nan")}, {"interval": float("inf")}, {"fsync": "allways"}],
    ids=str,
)
def test_what_makes_no_sense_is_said_at_once(wrong: dict[str, Any]) -> None:
    """An interval that would spin, and a word that would sync nothing."""
    with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` must be"):
        UsageRecorder("127.0.0.1:1", **wrong)


def test_what_the_service_refuses_is_told(rpc_server: Server, manager: Manager, account: str, key: Key) -> None:
    """An unknown key is REJECTED, an id with other content is CONFLICT; what was sent beside them counts."""
    told = Told()
    with UsageRecorder(rpc_server.address, rpc_server.token, interval=60, **told.callbacks) as recorder:
        recorder.record(key.key_id, 1, record_id="r1")
        assert recorder.flush(10)
        recorder.record(key.key_id, 5, record_id="r1")
        recorder.record("key_unknown", tags={"a": "b"})
        recorder.record(key.key_id, 7)
        assert recorder.flush(10)
    assert counted(manager, account, key) == (8, 2)
    assert [(each.outcome, each.usage.units) for each in told.refused] == [(Outcome.CONFLICT, 5), (Outcome.REJECTED, 1)]
    assert told.refused[1].usage.tags == {"a": "b"}
    assert "key_id" in told.refused[1].message
    assert (recorder.counters["refused"], told.dropped) == (2, [])


@pytest.mark.parametrize("spooled", [False, True], ids=["memory", "spool"])
def test_connections_that_break_count_nothing_twice(
    spooled: bool,  # noqa: FBT001
    tmp_path: Path,
    proxy: Proxy,
    rpc_server: Server,
    manager: Manager,
    account: str,
    key: Key,
) -> None:
    """Four threads record while connections break at random bytes both ways: each record is counted exactly once."""
    dice = random.Random(5)
    stop = threading.Event()

    def breaking() -> None:
        while not stop.wait(0.02):
            dice.choice([proxy.truncate_answers, proxy.truncate_requests])(dice.randrange(1, 2_000))

    told = Told()
    spool = tmp_path / "spool" if spooled else None
    address = f"127.0.0.1:{proxy.port}"
    with UsageRecorder(address, rpc_server.token, interval=0.01, spool=spool, **told.callbacks) as recorder:
        breaker = threading.Thread(target=breaking)
        breaker.start()

        def work() -> None:
            for _ in range(300):
                recorder.record(key.key_id)
                time.sleep(0.001)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stop.set()
        breaker.join()
        proxy.pass_on()
        assert recorder.flush(20)
    assert counted(manager, account, key) == (1_200, 1_200)
    assert recorder.counters["retries"] > 0
    assert (told.refused, told.dropped) == ([], [])
    assert not spooled or not list((tmp_path / "spool").iterdir())


def test_a_server_that_is_killed_in_the_middle(tmp_path: Path) -> None:
    """Killed with -9 while records stream in, and started again on its data: each record is counted once."""
    server = Server(tmp_path)
    with server, Proxy(int(server.address.rpartition(":")[2])) as proxy:
        manager = Manager(server.address, server.token)
        account = new_account(manager)
        key = new_key(manager, account)
        stop = threading.Event()
        with UsageRecorder(f"127.0.0.1:{proxy.port}", server.token, interval=0.01) as recorder:
            number = 0

            def work() -> None:
                nonlocal number
                while not stop.is_set():
                    recorder.record(key.key_id)
                    number += 1
                    time.sleep(0.0005)

            worker = threading.Thread(target=work)
            worker.start()
            while not recorder.counters["accepted"]:
                time.sleep(0.005)
            server.kill()
            server.start()
            proxy.go_to(int(server.address.rpartition(":")[2]))
            stop.set()
            worker.join()
            assert recorder.flush(30)
        manager.close()
        again = Manager(server.address, server.token)
        assert counted(again, account, key) == (number, number)
        again.close()


def test_memory_that_is_full_says_so(proxy: Proxy, rpc_server: Server) -> None:
    """One record too many raises FullError, or goes to on_drop; it is counted, and what was taken is not touched."""
    proxy.refuse()
    address = f"127.0.0.1:{proxy.port}"
    strict = UsageRecorder(address, rpc_server.token, most=3)
    for _ in range(3):
        strict.record("k")
    with pytest.raises(FullError):
        strict.record("k")
    told = Told()
    tolerant = UsageRecorder(address, rpc_server.token, most=3, **told.callbacks)
    ids = [tolerant.record("k", number) for number in range(5)]
    assert [usage.units for usage in told.dropped] == [3, 4]
    assert [usage.record_id for usage in told.dropped] == ids[3:]
    for recorder, dropped in ((strict, 1), (tolerant, 2)):
        assert recorder.counters["dropped"] == dropped
        assert recorder.close(0.05) == 3
    assert len(told.dropped) == 5
    assert tolerant.counters["dropped"] == 5


def test_a_close_without_the_service_ends_and_says_what_is_left(
    proxy: Proxy, rpc_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """close() returns in time with the number, tells on_drop each record, and logs it."""
    proxy.stall()
    told = Told()
    recorder = UsageRecorder(f"127.0.0.1:{proxy.port}", rpc_server.token, **told.callbacks)
    for _ in range(1_200):
        recorder.record("k")
    began = time.monotonic()
    assert recorder.close(0.2) == 1_200
    assert time.monotonic() - began < 5
    assert len(told.dropped) == 1_200
    assert "1200 usage records could not be sent" in caplog.text
    assert recorder.close() == 1_200


def test_a_record_is_taken_or_refused_while_another_thread_closes(rpc_server: Server) -> None:
    """Whatever the moment: one that was taken is sent or told of as dropped; one that comes later is a ClosedError."""
    for at in range(30):
        told = Told()
        recorder = UsageRecorder("127.0.0.1:1", rpc_server.token, **told.callbacks)
        put, held_up = recorder._buffer.put, threading.Event()

        def slow(payload: bytes, put: Any = put, held_up: threading.Event = held_up, at: int = at) -> None:
            held_up.set()
            time.sleep(at / 1_000)
            put(payload)

        recorder._buffer.put = slow  # type: ignore[method-assign, assignment]
        closing = threading.Thread(target=lambda r=recorder, h=held_up: (h.wait(), r.close(0.001)))
        closing.start()
        recorder.record("k")
        closing.join()
        assert recorder.counters["put"] == recorder.counters["dropped"] == len(told.dropped) == 1
        with pytest.raises(ClosedError):
            recorder.record("k")
        assert recorder.close() == 1


def test_a_record_that_a_signal_s_handler_closes_within_is_told_of() -> None:
    """The same thread closes in the middle of ``record``: what was taken is told of as dropped."""
    told = Told()
    recorder = UsageRecorder("127.0.0.1:1", "t", **told.callbacks)
    put = recorder._buffer.put

    def closes(record: bytes) -> None:
        recorder.close(0.001)
        put(record)

    recorder._buffer.put = closes  # type: ignore[method-assign]
    recorder.record("k")
    assert recorder.close(0.001) == 1
    assert len(told.dropped) == recorder.counters["dropped"] == 1


def test_a_close_ends_though_a_callback_does_not(
    proxy: Proxy, rpc_server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever hangs in ``on_drop`` holds up no process that wants to end; the log says so."""
    monkeypatch.setattr(recorder_module, "_ENDING_SECONDS", 0.2)
    proxy.refuse()
    go_on = threading.Event()
    recorder = UsageRecorder(f"127.0.0.1:{proxy.port}", rpc_server.token, on_drop=lambda _: go_on.wait(10))  # type: ignore[arg-type]
    recorder.record("k")
    try:
        began = time.monotonic()
        assert recorder.close(0.05) == 1
        assert time.monotonic() - began < 3
        assert "does not end" in caplog.text
    finally:
        go_on.set()
    assert recorder.close() == 1


def test_a_flush_ends_when_the_recorder_has(proxy: Proxy, rpc_server: Server) -> None:
    """False, and not never: whether the recorder gives up during it or before, and though ``on_drop`` hangs."""
    proxy.refuse()
    go_on = threading.Event()
    recorder = UsageRecorder(f"127.0.0.1:{proxy.port}", rpc_server.token, on_drop=lambda _: go_on.wait(10))  # type: ignore[arg-type]
    recorder.record("k")
    told: list[bool] = []
    flushing = threading.Thread(target=lambda: told.append(recorder.flush()), daemon=True)
    flushing.start()
    closing = threading.Thread(target=recorder.close, args=(0.1,))
    closing.start()
    flushing.join(5)
    assert told == [False]
    go_on.set()
    closing.join()
    assert not asyncio.run(asyncio.wait_for(recorder.aflush(5), 3))


@pytest.mark.parametrize("spooled", [False, True], ids=["memory", "spool"])
def test_a_close_of_what_never_connected_tells_what_is_left(
    spooled: bool,  # noqa: FBT001
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where no channel can be made, what is in memory is dropped and told of; what is in a spool is kept."""

    def fails(_: Connection) -> grpc.Channel:
        raise OSError(2, "No such file or directory")

    monkeypatch.setattr(Connection, "channel", fails)
    told = Told()
    spool = tmp_path / "spool" if spooled else None
    recorder = UsageRecorder("127.0.0.1:1", "t", spool=spool, **told.callbacks)
    for _ in range(3):
        recorder.record("k")
    assert recorder.close(0.05) == 3
    assert len(told.dropped) == recorder.counters["dropped"] == (0 if spooled else 3)
    if spool is not None:
        assert taken_from(spool) == 3


def taken_from(folder: Path) -> int:
    """Return how many records wait in a folder."""
    left = Spool(folder, 2**20, "never").take()
    return 0 if left is None else len(left.records)


def test_a_record_that_the_disk_did_not_take_is_not_sent(
    tmp_path: Path, server: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told of as dropped, it is not counted beside the one that the caller records in its place."""
    sent: list[str] = []

    def record(request: bytes, _: Any) -> bytes:
        results = answers(request)
        sent.extend(result.record_id for result in results)
        return whole(results)

    server.record = record
    told = Told()
    sync = os.fsync
    with UsageRecorder(server.address, interval=60, spool=tmp_path, fsync="always", **told.callbacks) as recorder:
        recorder.record("k", record_id="a")

        def fails(_: int) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(os, "fsync", fails)
        recorder.record("k", record_id="b")
        monkeypatch.setattr(os, "fsync", sync)
        recorder.record("k", record_id="c")
        assert recorder.flush(10)
        assert sent == ["a", "c"]
        assert [usage.record_id for usage in told.dropped] == ["b"]
    assert recorder.close() == 0


def test_a_record_does_not_wait_for_the_disk(tmp_path: Path, server: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the disk hangs, records are taken; by default it is waited for elsewhere."""
    server.record = lambda request, _: whole(answers(request))
    hangs, go_on, sync = threading.Event(), threading.Event(), os.fsync

    def slow(descriptor: int) -> None:
        hangs.set()
        go_on.wait(20)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    with UsageRecorder(server.address, interval=60, spool=tmp_path) as recorder:
        try:
            began = time.monotonic()
            recorder.record("k")
            assert hangs.wait(10)  # without the next batch: that is a minute away
            recorder.record("k")
            assert time.monotonic() - began < 10
            assert not recorder.flush(0.1)
        finally:
            go_on.set()
        assert recorder.flush(10)


def answers(request: bytes, outcome: int = pb.OUTCOME_ACCEPTED) -> list[pb.UsageResult]:
    """Return a result for each record of a request."""
    records = pb.RecordUsageRequest.FromString(request).records
    return [pb.UsageResult(record_id=record.record_id, outcome=outcome) for record in records]  # type: ignore[arg-type]


def whole(results: Sequence[pb.UsageResult]) -> bytes:
    """Write an answer."""
    return pb.RecordUsageResponse(results=results).SerializeToString()


@pytest.mark.parametrize("broken", ["empty", "nonsense", "too few", "of others", "unspecified", "unknown", "a fault"])
def test_nonsense_is_not_taken_for_recorded(broken: str, server: Scripted) -> None:
    """An answer that does not say of this very record what became of it leaves the record waiting."""
    seen: list[list[str]] = []

    def record(request: bytes, context: Any) -> bytes:
        results = answers(request)
        seen.append([result.record_id for result in results])
        if len(seen) > 1:
            return whole(results)
        if broken == "a fault":
            context.abort(grpc.StatusCode.INTERNAL, "no")
        return {
            "empty": b"",
            "nonsense": b"\xff",
            "too few": whole(results[1:]),
            "of others": whole([pb.UsageResult(record_id="x", outcome=pb.OUTCOME_ACCEPTED) for _ in results]),
            "unspecified": whole(answers(request, 0)),
            "unknown": whole(answers(request, 9)),
        }[broken]

    server.record = record
    with UsageRecorder(server.address, interval=60) as recorder:
        ids = [recorder.record("k") for _ in range(3)]
        assert recorder.flush(10)
    assert seen == [ids, ids]
    assert recorder.counters["accepted"] == 3


def test_one_that_spoils_a_whole_call_is_found(server: Scripted) -> None:
    """A record for which the service refuses all of its call is refused alone; the others are recorded."""
    accepted: list[str] = []

    def record(request: bytes, context: Any) -> bytes:
        results = answers(request)
        if "bad" in [result.record_id for result in results]:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "broken")
        accepted.extend(result.record_id for result in results)
        return whole(results)

    server.record = record
    told = Told()
    with UsageRecorder(server.address, interval=60, **told.callbacks) as recorder:
        ids = [recorder.record("k", record_id="bad" if number == 5 else "") for number in range(20)]
        assert recorder.flush(10)
    assert sorted([*accepted, "bad"]) == sorted(ids)
    assert [(each.usage.record_id, each.outcome) for each in told.refused] == [("bad", Outcome.REJECTED)]


def test_a_service_that_takes_less_gets_less(tmp_path: Path) -> None:
    """What is too large as one call is sent as many; what is so by itself is refused alone, with the reason."""
    told = Told()
    with Server(tmp_path, "--max-request-bytes", "65536") as server:
        manager = Manager(server.address, server.token)
        account = new_account(manager)
        key = new_key(manager, account)
        tags = {f"{number:064}": "x" * 256 for number in range(16)}
        spool = Spool(tmp_path / "spool", 2**20, "never")  # as an earlier version may have left it
        spool.put(pb.UsageRecord(record_id="large", key_id=key.key_id, resource="x" * 100_000).SerializeToString())
        spool.close()
        with UsageRecorder(server.address, server.token, spool=tmp_path / "spool", **told.callbacks) as recorder:
            for _ in range(40):
                recorder.record(key.key_id, tags=tags)
            assert recorder.flush(20)
            assert counted(manager, account, key) == (40, 40)
            deadline = time.monotonic() + 10
            while not told.refused:
                assert time.monotonic() < deadline
                time.sleep(0.02)
        manager.close()
    assert [refused.usage.record_id for refused in told.refused] == ["large"]
    assert "larger than max" in told.refused[0].message


def test_a_service_that_asks_for_patience_gets_it(server: Scripted) -> None:
    """The same code without a size: nothing is refused, and nothing sent in pieces."""
    seen: list[int] = []

    def record(request: bytes, context: Any) -> bytes:
        results = answers(request)
        seen.append(len(results))
        if len(seen) < 3:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "not so fast")
        return whole(results)

    server.record = record
    told = Told()
    with UsageRecorder(server.address, interval=60, **told.callbacks) as recorder:
        for _ in range(4):
            recorder.record("k")
        assert recorder.flush(10)
    assert (seen, told.refused, told.dropped) == ([4, 4, 4], [], [])


def test_a_token_that_is_not_known_yet_loses_nothing(server: Scripted) -> None:
    """A service that refuses the token is asked again, until it knows it."""
    calls: list[int] = []

    def record(request: bytes, context: Any) -> bytes:
        calls.append(1)
        if len(calls) < 3:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "who?")
        return whole(answers(request))

    server.record = record
    with UsageRecorder(server.address, interval=60) as recorder:
        recorder.record("k")
        assert recorder.flush(10)
    assert recorder.counters["accepted"] == 1


AT_EXIT = """
import sys
from formgate import UsageRecorder
recorder = UsageRecorder(sys.argv[1], sys.argv[2], interval=60)
for _ in range(5):
    recorder.record(sys.argv[3])
"""


def run(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a program of its own process."""
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_interpreters_exit_sends_what_waits(rpc_server: Server, manager: Manager, account: str, key: Key) -> None:
    """A program that ends without closing loses nothing."""
    done = run(AT_EXIT, rpc_server.address, rpc_server.token, key.key_id)
    assert (done.returncode, done.stderr) == (0, "")
    assert counted(manager, account, key) == (5, 5)


AT_EXIT_AWAY = """
import atexit, time
from formgate import UsageRecorder, recorder as module
module._AT_EXIT_SECONDS = 1
recorders = [UsageRecorder("127.0.0.1:1", "t", interval=60) for _ in range(4)]
for recorder in recorders:
    recorder.record("k")
ending = []
atexit.unregister(module._close_all)
atexit.register(lambda: print(time.monotonic() - ending[0], [each.counters["dropped"] for each in recorders], sep=";"))
atexit.register(module._close_all)
atexit.register(lambda: ending.append(time.monotonic()))
"""


def test_at_the_interpreters_exit_recorders_share_their_time() -> None:
    """While the service is away, four take no longer than one."""
    done = run(AT_EXIT_AWAY)
    took, _, dropped = done.stdout.strip().partition(";")
    assert (done.returncode, dropped) == (0, "[1, 1, 1, 1]"), done.stderr
    assert 0.9 < float(took) < 3


FORKING = """
import os, sys
from formgate import UsageRecorder
spool = sys.argv[4] or None
recorder = UsageRecorder(sys.argv[1], sys.argv[2], interval=60, spool=spool)
for _ in range(3):
    recorder.record(sys.argv[3], record_id="")
child = os.fork()
for _ in range(2):
    recorder.record(sys.argv[3])
left = recorder.close(20)
counters = recorder.counters
os.write(1, f"{counters['accepted']} {counters['duplicate']} {left};".encode())
if not child:
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("spooled", [False, True], ids=["memory", "spool"])
def test_a_forked_child_sends_its_own(
    spooled: bool,  # noqa: FBT001
    tmp_path: Path,
    rpc_server: Server,
    manager: Manager,
    account: str,
    key: Key,
) -> None:
    """What waited before the fork is sent by the parent alone, and what each records after it by itself."""
    spool = tmp_path / "spool" if spooled else ""
    done = run(FORKING, rpc_server.address, rpc_server.token, key.key_id, spool)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.split(";")) == ["", "2 0 0", "5 0 0"]
    assert counted(manager, account, key) == (7, 7)
