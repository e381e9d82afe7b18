"""What the service answered, read strictly: what is empty, unknown or malformed is an error, never "allowed"."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from types import MappingProxyType
from typing import Any, TypeAlias, TypeVar

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2, status_pb2

from formgate.errors import (
    BrokenAnswerError,
    DeadlineError,
    FieldViolation,
    ForbiddenError,
    FormgateError,
    InvalidRequestError,
    UnauthenticatedError,
    UnavailableError,
)
from formgate.rules.reason import Reason
from formgate.v1 import authorization_pb2 as pb
from formgate.v1 import resources_pb2
from formgate.verdict import (
    CheckedKey,
    Environment,
    Holder,
    HttpDenial,
    LimitStatus,
    Step,
    StepOutcome,
    Verdict,
)

Outcome: TypeAlias = Verdict | FormgateError
"""What came of one check."""

E = TypeVar("E", bound=IntEnum)
M = TypeVar("M", bound=Message)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DETAILS = "grpc-status-details-bin"
_CODES = {code.value[0]: code for code in grpc.StatusCode}
_OK = pb.REASON_OK
_MOST_KEYS = 1_000
# A look-up in a dictionary takes a quarter of the time that a call of the enum takes.
_REASONS = {reason.value: reason for reason in Reason}
_NUMBERED: dict[type[IntEnum], dict[int, Any]] = {
    kind: {member.value: member for member in kind} for kind in (Environment, Holder)
}


def decode(kind: type[M], payload: bytes) -> M:
    """Read a message's bytes. Raises BrokenAnswerError."""
    try:
        return kind.FromString(payload)
    except DecodeError:
        raise BrokenAnswerError("the answer can not be read") from None


def read_response(response: pb.CheckKeyResponse) -> Verdict:
    """Read the service's verdict. Raises BrokenAnswerError unless it says plainly yes or no, and why."""
    if response.allowed is not (response.reason == _OK):
        raise BrokenAnswerError(
            f"the answer contradicts itself: allowed is {response.allowed}, reason {response.reason}"
        )
    if response.allowed and not response.key.key_id:
        raise BrokenAnswerError("the answer allows and does not say which key")
    try:
        return _verdict(response)
    except (LookupError, ValueError, OverflowError):
        raise BrokenAnswerError("the answer has a value that is unknown or out of range") from None


def read_check(payload: bytes) -> Verdict:
    """Read the answer to CheckKey. Raises BrokenAnswerError."""
    return read_response(decode(pb.CheckKeyResponse, payload))


def read_batch(payload: bytes, asked: int) -> list[Outcome]:
    """Read the answer to BatchCheckKeys, each check's by itself. Raises BrokenAnswerError where it can not be split."""
    results = decode(pb.BatchCheckKeysResponse, payload).results
    if len(results) != asked:  # which is whose, nobody can tell
        raise BrokenAnswerError(f"the answer has {len(results)} results for {asked} checks")
    return [_outcome(result) for result in results]


def _outcome(result: pb.BatchCheckKeysResult) -> Outcome:
    match result.WhichOneof("result"):
        case "response":
            try:
                return read_response(result.response)
            except BrokenAnswerError as error:
                return error.with_traceback(None)
        case "error":
            return error_of_status(result.error)
        case _:
            return BrokenAnswerError("the answer has an empty result")


def _verdict(response: pb.CheckKeyResponse) -> Verdict:
    return Verdict(
        allowed=response.allowed,
        reason=_REASONS[response.reason],
        message=response.message,
        http_status=response.http_status,
        retry_after=_duration(response.retry_after) if response.HasField("retry_after") else None,
        key=read_key(response.key) if response.HasField("key") else None,
        limits=tuple([read_limit(limit) for limit in response.limits]),
        http_denial=_denial(response.http_denial) if response.HasField("http_denial") else None,
        degraded=response.degraded,
        epoch=response.epoch,
        explanation=tuple(
            [Step(step.step, StepOutcome(step.outcome), step.detail) for step in response.explanation],
        ),
    )


_keys: dict[bytes, CheckedKey] = {}


def read_key(key: pb.CheckedKey) -> CheckedKey:
    """Read what is told of a key; what was read before is not read again. Raises KeyError or OverflowError."""
    told = key.SerializeToString()
    found = _keys.get(told)
    if found is None:
        if len(_keys) >= _MOST_KEYS:
            _keys.clear()
        found = _keys[told] = _key(key)
    return found


def _key(key: pb.CheckedKey) -> CheckedKey:
    return CheckedKey(
        key_id=key.key_id,
        account_id=key.account_id,
        display_name=key.display_name,
        environment=_known(Environment, key.environment),
        created_by=key.created_by,
        metadata=MappingProxyType(dict(key.metadata)) if key.metadata else None,
        expire_time=_time(key.expire_time) if key.HasField("expire_time") else None,
    )


def read_limit(limit: resources_pb2.LimitStatus) -> LimitStatus:
    """Read where a limit stands. Raises KeyError or OverflowError."""
    return LimitStatus(
        name=limit.name,
        holder=_known(Holder, limit.holder),
        amount=limit.amount if limit.HasField("amount") else None,
        remaining=limit.remaining,
        reset_time=_time(limit.reset_time) if limit.HasField("reset_time") else None,
        unlimited=limit.unlimited,
        window=_duration(limit.window) if limit.HasField("window") else None,
    )


def _denial(denial: pb.HttpDenial) -> HttpDenial:
    headers = tuple([(header.name, header.value) for header in denial.headers])
    return HttpDenial(denial.status, headers, denial.body)


def _known(kind: type[E], number: int) -> E | None:
    return _NUMBERED[kind][number] if number else None


def _time(stamp: Timestamp) -> datetime:
    return _EPOCH + timedelta(0, stamp.seconds, stamp.nanos // 1_000)


def _duration(duration: Duration) -> timedelta:
    return timedelta(0, duration.seconds, duration.nanos // 1_000)


def error_of_call(error: grpc.RpcError) -> FormgateError:
    """Read how a call failed."""
    code: grpc.StatusCode = error.code()
    trailing: Any = error.trailing_metadata()  # typed in one way by grpc, in another by grpc.aio
    for name, value in trailing or ():
        if name == _DETAILS:
            with contextlib.suppress(DecodeError):  # the code itself says enough
                return error_of_status(status_pb2.Status.FromString(value))
    return _error(code, error.details() or "")


def error_of_status(status: status_pb2.Status) -> FormgateError:
    """Read why a call, or one check of a batch, was not decided."""
    info = error_details_pb2.ErrorInfo()
    bad = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    with contextlib.suppress(DecodeError):  # the same
        for detail in status.details:
            any(detail.Unpack(known) for known in (info, bad, retry))
    made = _error(_CODES.get(status.code, grpc.StatusCode.UNKNOWN), status.message)
    made.reason = info.reason
    made.metadata = dict(info.metadata)
    if isinstance(made, InvalidRequestError):
        made.fields = tuple(FieldViolation(each.field, each.description) for each in bad.field_violations)
    if isinstance(made, UnavailableError) and retry.HasField("retry_delay"):
        made.retry_after = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    return made


def _error(code: grpc.StatusCode, message: str) -> FormgateError:
    told = f"{message} ({code.name})" if message else code.name
    match code:
        case grpc.StatusCode.UNAVAILABLE:
            return UnavailableError(told)
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineError(told)
        case grpc.StatusCode.INVALID_ARGUMENT | grpc.StatusCode.OUT_OF_RANGE:
            return InvalidRequestError(told)
        case grpc.StatusCode.UNAUTHENTICATED:
            return UnauthenticatedError(told)
        case grpc.StatusCode.PERMISSION_DENIED:
            return ForbiddenError(told)
        case grpc.StatusCode.UNIMPLEMENTED | grpc.StatusCode.FAILED_PRECONDITION | grpc.StatusCode.NOT_FOUND:
            return FormgateError(told)
        case _:  # a fault, not silence: what a crafted request may bring about must not open anything
            return BrokenAnswerError(told)
