"""Verdicts as bytes: what is told of a key is written once, and only its limits for every check.

Bytes of a message after bytes of another of its type are the bytes of both merged
(https://protobuf.dev/programming-guides/encoding/#last-one-wins): so an answer can begin with what is always told.
"""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.duration_pb2 import Duration
from google.rpc.status_pb2 import Status

from formgate.v1 import authorization_pb2 as pb
from formgate_server.core import model
from formgate_server.core.limits import Standing
from formgate_server.core.model import Limit
from formgate_server.core.verdict import KeyRecord, Reason, Verdict
from formgate_server.log import blot
from formgate_server.rpc.convert import number, tell_limit, timestamp, to_duration

_MOST_FORMS = 10_000
_SECOND = 1_000_000
_DEGRADED = pb.CheckKeyResponse(degraded=True).SerializeToString()
_RESPONSE, _ERROR, _RESULTS = b"\n", b"\x12", b"\n"
"""Tags of BatchCheckKeysResult's and BatchCheckKeysResponse's fields (field number * 8 + 2: a length follows)."""


def check_response(verdict: Verdict) -> bytes:
    """Write a verdict as a CheckKeyResponse."""
    record = verdict.record
    if verdict.reason is not Reason.OK or record is None or verdict.steps:
        return _whole(verdict).SerializeToString()
    parts = [record.told or _tell_key(record)]
    parts += [_limit(standing) for standing in verdict.limits]
    if verdict.degraded:
        parts.append(_DEGRADED)
    return b"".join(parts)


def batch_response(results: Iterable[bytes | Status]) -> bytes:
    """Write results, each a CheckKeyResponse's bytes or an error, as a BatchCheckKeysResponse."""
    return b"".join(
        [
            _field(
                _RESULTS, _field(_RESPONSE, one) if isinstance(one, bytes) else _field(_ERROR, one.SerializeToString())
            )
            for one in results
        ]
    )


def _field(tag: bytes, value: bytes) -> bytes:
    """Write a field that has a length."""
    length = len(value)
    return tag + (_LENGTHS[length] if length < len(_LENGTHS) else _varint(length)) + value


def _varint(value: int) -> bytes:
    """Write a number seven bits a byte, the lowest first; all but the last byte have their highest bit set."""
    digits = []
    while value > 0x7F:  # noqa: PLR2004 - what seven bits hold
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*digits, value))


_LENGTHS = tuple(map(_varint, range(1_024)))


class _Form:
    """An answer with one limit in it, to be filled in and written again and again: many keys have the same."""

    __slots__ = ("_answer", "_reset_time", "_status", "limit")

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self._answer = pb.CheckKeyResponse()
        self._status = self._answer.limits.add()
        tell_limit(self._status, Standing(limit, 0, None))
        self._reset_time: int | None = None

    def fill(self, remaining: int, reset_time: int | None) -> bytes:
        """Write the answer."""
        status = self._status
        if self.limit.amount is not None:
            status.remaining = remaining
        if reset_time != self._reset_time:
            self._reset_time = reset_time
            status.ClearField("reset_time")
            if reset_time is not None:
                status.reset_time.seconds, micros = divmod(reset_time, _SECOND)
                status.reset_time.nanos = micros * 1_000
        return self._answer.SerializeToString()


_forms: dict[int, _Form] = {}


def _limit(standing: Standing) -> bytes:
    limit, remaining, reset_time = standing
    form = _forms.get(id(limit))  # the form holds its limit: no other gets its id
    if form is None:
        if len(_forms) >= _MOST_FORMS:
            _forms.clear()
        form = _forms[id(limit)] = _Form(limit)
    return form.fill(remaining, reset_time)


def _tell_key(record: KeyRecord) -> bytes:
    """Write what every verdict begins with that allows this key, and keep it."""
    told = _whole(Verdict(Reason.OK, "", 200, record)).SerializeToString()
    record.keep_told(told)
    return told


def _whole(verdict: Verdict) -> pb.CheckKeyResponse:
    reason, record = verdict.reason, verdict.record
    response = pb.CheckKeyResponse(
        allowed=reason is Reason.OK,
        reason=number(reason),
        message=verdict.message,
        http_status=verdict.http_status,
        degraded=verdict.degraded,
    )
    if record is not None:
        response.epoch = record.epoch
        response.key.CopyFrom(checked_key(record.key))
    for standing in verdict.limits:
        tell_limit(response.limits.add(), standing)
    if verdict.retry_after is not None:
        response.retry_after.CopyFrom(to_duration(verdict.retry_after) or Duration())
    if verdict.http_denial is not None:
        denial = verdict.http_denial
        response.http_denial.status = denial.status
        response.http_denial.body = denial.body
        for name, value in denial.headers:
            response.http_denial.headers.add(name=name, value=value)
    for step in verdict.steps:
        response.explanation.add(step=step.name, outcome=number(step.outcome), detail=blot(step.detail))
    return response


def checked_key(key: model.Key) -> pb.CheckedKey:
    """Return what is told of a key."""
    return pb.CheckedKey(
        key_id=key.key_id,
        account_id=key.account_id,
        display_name=key.display_name,
        environment=number(key.environment),
        created_by=key.created_by,
        metadata=key.metadata,
        expire_time=timestamp(key.expire_time),
    )
