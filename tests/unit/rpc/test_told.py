"""Verdicts as bytes: a reader sees what protobuf itself would have written, whoever was told what before."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from google.rpc.status_pb2 import Status

from formgate.rules.reason import Reason
from formgate.v1 import authorization_pb2 as pb
from formgate_server.core.compile_key import compile_key
from formgate_server.core.limits import Standing
from formgate_server.core.model import Calendar, Holder, Lifetime, Limit, Period, Rolling
from formgate_server.core.verdict import KeyRecord, Step, StepOutcome, Verdict
from formgate_server.rpc import convert
from formgate_server.rpc.told import batch_response, check_response
from tests.support.stores import POLICY, account, key

LIMITS = (
    Limit("rate", Holder.KEY, 100, Rolling(60_000_000)),
    Limit("daily", Holder.ACCOUNT, 2**63 - 1, Calendar(Period.DAY)),
    Limit("none", Holder.KEY, 0, Lifetime()),
    Limit("unlimited", Holder.KEY, None, Lifetime()),
)


def record(key_id: str = "k1", epoch: int = 1) -> KeyRecord:
    """Make what is known of a key."""
    one = replace(key(key_id), metadata={"team": key_id}, expire_time=1_900_000_000_000_001)
    return compile_key(one, account(epoch=epoch), POLICY)


def told(verdict: Verdict) -> pb.CheckKeyResponse:
    """Read the bytes."""
    return pb.CheckKeyResponse.FromString(check_response(verdict))


def expected(verdict: Verdict) -> pb.CheckKeyResponse:
    """Write an allowing verdict field by field."""
    known = verdict.record
    assert known is not None
    response = pb.CheckKeyResponse(
        allowed=True,
        reason=pb.REASON_OK,
        http_status=200,
        epoch=known.epoch,
        degraded=verdict.degraded,
        key=pb.CheckedKey(
            key_id=known.key.key_id,
            account_id=known.key.account_id,
            display_name=known.key.display_name,
            environment=convert.number(known.key.environment),
            created_by=known.key.created_by,
            metadata=known.key.metadata,
            expire_time=convert.timestamp(known.key.expire_time),
        ),
    )
    for standing in verdict.limits:
        convert.tell_limit(response.limits.add(), standing)
    return response


def test_each_verdict_is_told_as_it_is() -> None:
    """Keys and epochs in turn, limits that fill and empty, come to a reset time and lose it, degraded and not."""
    records = [record("k1"), record("k2"), record("k1", epoch=2)]
    times = (None, 1_800_000_000_000_000, 1_800_000_000_000_001, None)
    for known, reset_time, remaining, degraded in product(records, times, (0, 1, 127, 128, 2**40), (False, True)):
        limits = tuple(Standing(limit, 0 if limit.amount is None else remaining, reset_time) for limit in LIMITS)
        for some in (limits, limits[::-1], limits[:1], ()):
            verdict = Verdict(Reason.OK, "", 200, known, None, some, None, degraded)
            assert told(verdict) == expected(verdict)


def test_steps_are_told_beside_all_else() -> None:
    """Where they are asked for."""
    verdict = Verdict(Reason.OK, "", 200, record(), steps=(Step("key", StepOutcome.PASSED, "k1"),))
    answer = told(verdict)
    assert [(step.step, step.outcome, step.detail) for step in answer.explanation] == [("key", 1, "k1")]
    del answer.explanation[:]
    assert answer == expected(verdict)


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason is not Reason.OK])
def test_a_denial_never_begins_with_an_admission(reason: Reason) -> None:
    """Also of a key that was told to be allowed just before."""
    known = record()
    assert told(Verdict(Reason.OK, "", 200, known)).allowed
    answer = told(Verdict(reason, "no", 403, known, 1_500_000))
    assert (answer.allowed, int(answer.reason), answer.message, answer.http_status) == (False, reason, "no", 403)
    assert (answer.key.key_id, answer.retry_after.ToMicroseconds()) == ("k1", 1_500_000)
    assert told(Verdict(Reason.OK, "", 200, known)).allowed


@pytest.mark.parametrize("length", [0, 1, 119, 120, 127, 128, 1_023, 1_024, 16_383, 16_384, 2**21])
def test_a_batch_is_written_as_protobuf_writes_it(length: int) -> None:
    """Whatever the length of its parts; empty answers stay answers, and errors stay errors."""
    answer = pb.CheckKeyResponse(message="x" * length)
    error = Status(code=14, message="y" * length)
    results = [
        pb.BatchCheckKeysResult(response=answer),
        pb.BatchCheckKeysResult(error=error),
        pb.BatchCheckKeysResult(response=pb.CheckKeyResponse()),
    ]
    written = batch_response([answer.SerializeToString(), error, b""])
    assert written == pb.BatchCheckKeysResponse(results=results).SerializeToString()
