from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.status_pb2 import Status

from formgate import Check
from formgate.errors import BrokenAnswerError, InvalidRequestError, UnavailableError
from formgate.v1 import authorization_pb2 as pb
from formgate.v1.resources_pb2 import LimitStatus
from formgate.verdict import Reason, Source
from tests.support.callers import KINDS, YES, Caller, Scripted, scripted

NO = pb.CheckKeyResponse(reason=pb.REASON_KEY_REVOKED, http_status=401)


def changed(message: pb.CheckKeyResponse, **fields: Any) -> bytes:
    """Return a message with other fields, as bytes."""
    copy = pb.CheckKeyResponse()
    copy.CopyFrom(message)
    copy.MergeFrom(pb.CheckKeyResponse(**fields))
    return copy.SerializeToString()


BROKEN = {
    "empty": b"",
    "no message at all": b"\xff\xff\xff",
    "cut short": YES.SerializeToString() + b"\x1a\x7fabc",
    "a page of HTML": b"<html><body>502 Bad Gateway</body></html>",
    "allowed, and nothing else": pb.CheckKeyResponse(allowed=True).SerializeToString(),
    "allowed for a reason to deny": pb.CheckKeyResponse(allowed=True, reason=pb.REASON_KEY_REVOKED).SerializeToString(),
    "allowed for an unknown reason": pb.CheckKeyResponse(allowed=True, reason=99).SerializeToString(),  # type: ignore[arg-type]
    "allowed, of no key": pb.CheckKeyResponse(allowed=True, reason=pb.REASON_OK, http_status=200).SerializeToString(),
    "allowed, of a key without an id": pb.CheckKeyResponse(
        allowed=True, reason=pb.REASON_OK, http_status=200, key=pb.CheckedKey(account_id="account_1")
    ).SerializeToString(),
    "OK, and not allowed": pb.CheckKeyResponse(reason=pb.REASON_OK).SerializeToString(),
    "not allowed for an unknown reason": pb.CheckKeyResponse(reason=99).SerializeToString(),  # type: ignore[arg-type]
    "a negative reason": pb.CheckKeyResponse(reason=-1).SerializeToString(),  # type: ignore[arg-type]
    "only a message": pb.CheckKeyResponse(message="come in", http_status=200).SerializeToString(),
    "of an unknown environment": changed(YES, key=pb.CheckedKey(key_id="k", environment=9)),  # type: ignore[arg-type]
    "a step of an unknown outcome": changed(YES, explanation=[pb.ExplanationStep(step="key", outcome=7)]),  # type: ignore[arg-type]
    "a step of no outcome": changed(YES, explanation=[pb.ExplanationStep(step="key")]),
    "an impossible time": changed(YES, key=pb.CheckedKey(key_id="k", expire_time=Timestamp(seconds=2**62))),
    "an impossible duration": changed(NO, retry_after=Duration(seconds=2**62)),
    "a limit of an unknown holder": changed(YES, limits=[LimitStatus(name="rate", holder=8)]),  # type: ignore[arg-type]
}


@pytest.fixture(scope="module")
def server() -> Iterator[Scripted]:
    """A server that says what it is told to."""
    with scripted() as server:
        yield server


@pytest.fixture(params=KINDS)
def caller(request: pytest.FixtureRequest, server: Scripted) -> Iterator[Caller]:
    """A client that is open to silence, which nonsense is not."""
    with Caller(request.param, server.address, timeout=5, fail="open") as caller:
        yield caller


def answering(payload: bytes) -> Callable[[bytes, Any], bytes]:
    """Return what answers so."""
    return lambda _request, _context: payload


def test_what_is_whole_is_read(caller: Caller, server: Scripted) -> None:
    """So that what is broken below is broken for its own reason only."""
    server.check = answering(YES.SerializeToString())
    assert caller.check("k")
    server.check = answering(NO.SerializeToString())
    assert caller.check("k").reason is Reason.KEY_REVOKED


@pytest.mark.parametrize("broken", BROKEN.values(), ids=list(BROKEN))
def test_nonsense_is_never_a_yes(broken: bytes, caller: Caller, server: Scripted) -> None:
    """An answer that is empty, unknown or malformed denies, in every fail mode, is counted, and is not asked again."""
    server.check = answering(broken)
    before = len(server.calls)
    verdict = caller.check("k", http_method="GET")
    assert not verdict
    assert (verdict.reason, verdict.source, verdict.http_status) == (None, Source.FALLBACK, 503)
    assert verdict.http_denial is not None
    assert isinstance(verdict.error, BrokenAnswerError)
    assert len(server.calls) == before + 1
    assert (caller.counters["broken"], caller.counters["fallback_open"]) == (1, 0)


READABLE = [name for name in BROKEN if name not in {"no message at all", "cut short", "a page of HTML"}]
"""Those that are a message: what is none breaks a batch as a whole."""


@pytest.mark.parametrize("name", READABLE)
def test_nonsense_in_a_batch_hurts_nobody_else(name: str, caller: Caller, server: Scripted) -> None:
    """One broken result is that check's alone."""
    whole, refused = YES.SerializeToString(), NO.SerializeToString()

    def batch(request: bytes, _context: Any) -> bytes:
        keys = [each.key for each in pb.BatchCheckKeysRequest.FromString(request).requests]
        written = {"whole": whole, "refused": refused, "broken": BROKEN[name]}
        return b"".join(field(field(written[key])) for key in keys)

    server.batch = batch
    verdicts = caller.check_all([Check("whole"), Check("broken"), Check("refused"), Check("whole")])
    assert [bool(verdict) for verdict in verdicts] == [True, False, False, True]
    assert isinstance(verdicts[1].error, BrokenAnswerError)
    assert verdicts[2].reason is Reason.KEY_REVOKED


def field(message: bytes) -> bytes:
    """Write a message as field 1."""
    assert len(message) < 16_384
    return b"\n" + bytes((len(message) & 0x7F | 0x80, len(message) >> 7)) + message


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\xff",
        pb.BatchCheckKeysResponse(results=[pb.BatchCheckKeysResult(response=YES)]).SerializeToString(),
        pb.BatchCheckKeysResponse(results=[pb.BatchCheckKeysResult(response=YES)] * 3).SerializeToString(),
        pb.BatchCheckKeysResponse(results=[pb.BatchCheckKeysResult()] * 2).SerializeToString(),
        pb.BatchCheckKeysResponse(results=[pb.BatchCheckKeysResult(error=Status())] * 2).SerializeToString(),
    ],
    ids=["empty", "no message", "too few", "too many", "results of nothing", "errors that say OK"],
)
def test_a_batch_that_can_not_be_told_apart_is_nobodys_yes(answer: bytes, caller: Caller, server: Scripted) -> None:
    """Too few results, too many or empty ones: every check of it is denied."""
    server.batch = answering(answer)
    verdicts = caller.check_all([Check("a"), Check("b")])
    assert [bool(verdict) for verdict in verdicts] == [False, False]
    assert all(isinstance(verdict.error, BrokenAnswerError) for verdict in verdicts)


def test_each_error_of_a_batch_is_its_checks_own(caller: Caller, server: Scripted) -> None:
    """A bad request is said as such, silence goes by the fail mode, and a fault opens nothing."""
    codes = {"a": grpc.StatusCode.INVALID_ARGUMENT, "b": grpc.StatusCode.UNAVAILABLE, "c": grpc.StatusCode.INTERNAL}

    def batch(request: bytes, _context: Any) -> bytes:
        results = []
        for each in pb.BatchCheckKeysRequest.FromString(request).requests:
            code = codes.get(each.key)
            error = Status(code=code.value[0], message="told") if code else None
            results.append(pb.BatchCheckKeysResult(error=error, response=None if error else YES))
        return pb.BatchCheckKeysResponse(results=results).SerializeToString()

    server.batch = batch
    server.check = lambda _request, context: context.abort(grpc.StatusCode.UNAVAILABLE, "told")
    verdicts = caller.check_all([Check("a"), Check("b"), Check("c"), Check("d")], timeout=1)
    assert [bool(verdict) for verdict in verdicts] == [False, True, False, True]
    assert [type(verdict.error) for verdict in verdicts[:3]] == [
        InvalidRequestError,
        UnavailableError,
        BrokenAnswerError,
    ]
    assert verdicts[1].source is Source.FALLBACK


@pytest.mark.parametrize(
    "code",
    [code for code in grpc.StatusCode if code not in {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}],
)
def test_no_status_but_silence_opens(code: grpc.StatusCode, caller: Caller, server: Scripted) -> None:
    """Of all errors only UNAVAILABLE and DEADLINE_EXCEEDED are silence; the rest lets nobody in."""
    server.check = lambda _request, context: context.abort(code, "told")
    (verdict,) = caller.check_all([Check("k")])
    assert bool(verdict) == (code is grpc.StatusCode.DEADLINE_EXCEEDED)
    assert "told" in str(verdict.error)
