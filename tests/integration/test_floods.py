"""A flood of keys that nobody has, against the real server over gRPC, with its reads of the database counted."""

from __future__ import annotations

import asyncio
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path

import grpc
import pytest

from formgate.v1 import authorization_pb2 as pb
from formgate.v1.accounts_pb2 import CreateAccountRequest
from formgate.v1.authorization_pb2_grpc import AuthorizationServiceStub
from formgate.v1.keys_pb2 import CreateKeyRequest
from formgate_server import bootstrap
from formgate_server.cli.errors import ExitCode
from formgate_server.core.secrets import new_secret
from formgate_server.core.verdict import KeyRecord
from formgate_server.settings import Settings
from formgate_server.storage.sql.keys import SqlKeyStore
from tests.support.client import Client, Refusal
from tests.support.command import run_here
from tests.support.server import Server, eventually

HERE, THERE = "192.0.2.1", "2001:db8::1"
UNDECIDED = "TOO_MANY_UNKNOWN_KEYS"


class World:
    """A server in this process, a client of it, and how often it read a key from its database."""

    def __init__(self, address: str, token: str, channel: grpc.aio.Channel, reads: list[float]) -> None:
        self.manager = Client(address, token)
        self.metadata = self.manager.metadata
        self.stub = AuthorizationServiceStub(channel)
        self.reads = reads

    async def good_keys(self, number: int = 1) -> list[str]:
        """Make an account and keys of it; returns their secrets."""

        def make() -> list[str]:  # the client blocks, and the server is in this very process
            account_id = self.manager(CreateAccountRequest()).account.account_id
            return [self.manager(CreateKeyRequest(account_id=account_id)).secret for _ in range(number)]

        return await asyncio.to_thread(make)

    async def check(self, key: str = "", source_ip: str = HERE) -> str:
        """Check a key, one that nobody has where none is given; returns the reason."""
        return told(await self.answer(key, source_ip))

    async def answer(self, key: str = "", source_ip: str = HERE) -> pb.CheckKeyResponse | Refusal:
        """Check a key; returns the verdict, or why there is none."""
        request = pb.CheckKeyRequest(key=key or new_secret("fg_live_"), source_ip=source_ip, explain=True)
        try:
            answer: pb.CheckKeyResponse = await self.stub.CheckKey(request, metadata=self.metadata, timeout=60)
        except grpc.RpcError as error:
            return Refusal.of(error)
        return answer

    async def batch(self, requests: Sequence[pb.CheckKeyRequest]) -> Counter[str]:
        """Check many keys in one call; returns how often each reason was told."""
        call = self.stub.BatchCheckKeys(pb.BatchCheckKeysRequest(requests=requests), metadata=self.metadata, timeout=60)
        answer: pb.BatchCheckKeysResponse = await call
        return Counter(
            told(each.response if each.WhichOneof("result") == "response" else Refusal.of_status(each.error))
            for each in answer.results
        )


def told(answer: pb.CheckKeyResponse | Refusal) -> str:
    """Return the reason of either."""
    if isinstance(answer, Refusal):
        assert answer.code is grpc.StatusCode.UNAVAILABLE
        assert answer.retry_seconds == 1
        return answer.reason
    reason = pb.Reason.Name(answer.reason).removeprefix("REASON_")
    assert answer.allowed == (reason == "OK")
    return reason


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When the database was asked for a key."""
    began: list[float] = []
    find = SqlKeyStore.find

    async def counting(self: SqlKeyStore, digests: Sequence[bytes], *, at_least: int = 0) -> KeyRecord | None:
        began.append(time.monotonic())
        return await find(self, digests, at_least=at_least)

    monkeypatch.setattr(SqlKeyStore, "find", counting)
    return began


@asynccontextmanager
async def world(folder: Path, reads: list[float], **settings: int) -> AsyncIterator[World]:
    """Serve in this process for a while."""
    data = folder / "data"
    given = Settings(data=data, listen="127.0.0.1:0", http="127.0.0.1:0", drain_seconds=1, **settings)  # type: ignore[arg-type]
    async with (
        bootstrap.build(given) as addresses,
        grpc.aio.insecure_channel(addresses.grpc) as channel,
    ):
        made = World(addresses.grpc, (data / "manager.token").read_text().strip(), channel, reads)
        with closing(made.manager):
            yield made


async def test_a_flood_from_one_address_is_told_so_while_others_are_served(tmp_path: Path, reads: list[float]) -> None:
    """One address shows unknown keys without end: it is told 429 and when to come back, and costs no more reads.

    Meanwhile a known key is allowed, from that address too; and from another address a key that was never seen before,
    and one that nobody has, are decided as ever.
    """
    async with world(tmp_path, reads, invalid_attempts_per_minute=5) as server:
        (known,), (new,) = await server.good_keys(), await server.good_keys()
        assert await server.check(known, THERE) == "OK"
        before = len(reads)
        assert [await server.check() for _ in range(5)] == ["KEY_NOT_FOUND"] * 5
        assert len(reads) - before == 5
        flood = [asyncio.ensure_future(server.check()) for _ in range(500)]
        assert await server.check(known, HERE) == "OK"
        assert await server.check(known, THERE) == "OK"
        assert await server.check(new, THERE) == "OK"
        assert await server.check(source_ip=THERE) == "KEY_NOT_FOUND"
        reasons = Counter(await asyncio.gather(*flood))
        assert (
            reasons["TOO_MANY_INVALID_ATTEMPTS"] >= 500 - 32
        )  # one more every twelve seconds, and those under way then
        assert set(reasons) <= {"TOO_MANY_INVALID_ATTEMPTS", "KEY_NOT_FOUND"}
        others = 1 + 1 + 1  # the new key, its account's epoch, and the other address' unknown one
        assert len(reads) - before == 5 + reasons["KEY_NOT_FOUND"] + others
        answer = await server.answer()
        if told(answer) == "KEY_NOT_FOUND":  # on a busy machine an attempt may have come back by now
            answer = await server.answer()
        assert isinstance(answer, pb.CheckKeyResponse)
        assert (answer.http_status, answer.http_denial.status) == (429, 429)
        assert 0 < answer.retry_after.ToMilliseconds() <= 12_000
        headers = {header.name: header.value for header in answer.http_denial.headers}
        assert int(headers["retry-after"]) == -(-answer.retry_after.ToMicroseconds() // 1_000_000)
        steps = {step.step: (step.outcome, step.detail) for step in answer.explanation}
        said = f"TOO_MANY_INVALID_ATTEMPTS: from {HERE}; it was not looked for"
        assert steps["key"] == (pb.STEP_OUTCOME_DENIED, said)
        assert steps["credential"][0] == pb.STEP_OUTCOME_PASSED


async def test_the_database_is_asked_no_more_than_it_may(tmp_path: Path, reads: list[float]) -> None:
    """Unknown keys from thousands of addresses: in no second more than three times the rate, over time the rate.

    What is over it is undecided and may be tried again, never denied; known keys are allowed all the while.
    """
    rate = 50
    async with world(tmp_path, reads, unknown_keys_per_second=rate) as server:
        (known,) = await server.good_keys()
        assert await server.check(known) == "OK"
        reads.clear()
        end = time.monotonic() + 3
        reasons: Counter[str] = Counter()
        knowns: Counter[str] = Counter()

        async def flood(worker: int) -> None:
            number = 0
            while time.monotonic() < end:
                number += 1
                reasons[await server.check(source_ip=f"10.{worker}.{number >> 8 & 255}.{number & 255}")] += 1

        async def use() -> None:
            while time.monotonic() < end:
                knowns[await server.check(known)] += 1

        began = time.monotonic()
        await asyncio.gather(*(flood(worker) for worker in range(20)), use())
        took = time.monotonic() - began
        assert set(reasons) == {"KEY_NOT_FOUND", UNDECIDED}
        assert set(knowns) == {"OK"}
        assert sum(knowns.values()) > 10
        assert len(reads) == reasons["KEY_NOT_FOUND"]
        assert rate <= len(reads) <= rate * (took + 2)


async def test_batches_have_the_same_budgets(tmp_path: Path, reads: list[float]) -> None:
    """A thousand unknown keys in one call cost no more reads than one by one; a known key among them is allowed."""
    async with world(tmp_path, reads, invalid_attempts_per_minute=30, unknown_keys_per_second=100) as server:
        (known,) = await server.good_keys()
        assert await server.check(known) == "OK"
        for source_ip, over, most in ((HERE, "TOO_MANY_INVALID_ATTEMPTS", 30 + 32), ("", UNDECIDED, 200)):
            reads.clear()
            unknown = [pb.CheckKeyRequest(key=new_secret("fg_live_"), source_ip=source_ip) for _ in range(999)]
            reasons = await server.batch([*unknown, pb.CheckKeyRequest(key=known, source_ip=source_ip)])
            assert set(reasons) == {"KEY_NOT_FOUND", over, "OK"}
            assert reasons["OK"] == 1
            assert len(reads) == reasons["KEY_NOT_FOUND"] <= most


async def test_good_keys_that_come_all_at_once_are_all_found(tmp_path: Path, reads: list[float]) -> None:
    """After a restart nothing is known: more keys than the budgets have, from one address, and all are allowed."""
    async with world(tmp_path, reads) as server:
        keys = await server.good_keys(100)
    reads.clear()
    async with world(tmp_path, reads, invalid_attempts_per_minute=1, unknown_keys_per_second=1) as server:
        reasons = await server.batch([pb.CheckKeyRequest(key=key, source_ip=HERE) for key in keys])
        assert reasons == {"OK": 100}
        assert len(reads) >= 100


async def test_what_is_malformed_costs_no_read_and_is_no_attempt(tmp_path: Path, reads: list[float]) -> None:
    """A wrong checksum is told without asking the database, however often, and counts against nobody."""
    async with world(tmp_path, reads, invalid_attempts_per_minute=1) as server:
        (good,) = await server.good_keys()
        wrong = [good[:-1] + ("a" if good[-1] != "a" else "b"), good[:-1], good + "x", "fg_live_" + "0" * 49]
        reads.clear()
        for key in wrong * 50:
            assert await server.check(key) == "MALFORMED_KEY"
        assert reads == []
        assert await server.check(good) == "OK"
        assert len(reads) >= 1


@pytest.fixture
def strict(tmp_path: Path) -> Iterator[Server]:
    """A server in a process of its own that lets an address show one unknown key, by its options and environment."""
    options = ("--invalid-attempts-per-minute", "1")
    with Server(tmp_path, *options, environment={"FORMGATE_UNKNOWN_KEYS_PER_SECOND": "1"}) as server:
        yield server


def test_the_command_shows_it_and_metrics_count_it(strict: Server) -> None:
    """`formgate check` says why and when to come back; over the budget of all it ends as undecided."""
    with closing(Client(strict.address, strict.token)) as manager:
        assert manager(pb.CheckKeyRequest(key=new_secret("fg_live_"), source_ip=HERE)).reason == pb.REASON_KEY_NOT_FOUND
    environment = {"FORMGATE_ADDRESS": strict.address, "FORMGATE_TOKEN": strict.token}
    denied = run_here("check", new_secret("fg_live_"), "--ip", HERE, environment=environment)
    assert (denied.code, denied.err) == (1, "")
    assert denied.out.startswith("DENIED  TOO_MANY_INVALID_ATTEMPTS")
    for said in ("429", "retry", f"from {HERE}; it was not looked for"):
        assert said in denied.out

    def undecided() -> str | None:
        ended = run_here("check", new_secret("fg_live_"), environment=environment)
        return None if ended.code == 1 else f"{ended.code} {ended.out}{ended.err}"

    said = eventually(undecided, 60, "two checks within a second")
    assert said.startswith(f"{ExitCode.UNDECIDED:d} ")
    assert UNDECIDED in said
    assert "too many unknown keys" in strict.log
    assert strict.log.count(UNDECIDED) == 1, "the one call that was refused has its line; more have a bound"
    with urllib.request.urlopen(f"http://{strict.http}/metrics", timeout=10) as answer:
        metrics = answer.read().decode()
    assert 'formgate_unknown_keys_total{outcome="not_found"}' in metrics
    assert 'formgate_unknown_keys_total{outcome="refused"} 1.0' in metrics
    assert 'formgate_unknown_keys_total{outcome="refused_address"} 1.0' in metrics
    assert 'formgate_checks_total{reason="TOO_MANY_INVALID_ATTEMPTS"} 1.0' in metrics
