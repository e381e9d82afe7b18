"""A usage record: what was consumed, and how it is put on the wire."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from typing import Final, NamedTuple, TypedDict

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from formgate.errors import invalid_field
from formgate.v1 import authorization_pb2 as pb

_LARGEST: Final = 60_000
"""Bytes of a record: twice what the service takes of its fields, and a call that every service takes."""


class Outcome(IntEnum):
    """What became of a record. Numbered as in ``formgate.v1``."""

    ACCEPTED = 1
    """Recorded, durably."""
    DUPLICATE = 2
    """Recorded before; counted once."""
    CONFLICT = 3
    """Another record with this id was there already; not counted."""
    REJECTED = 4
    """Not acceptable, whenever it is sent; not counted."""


class Usage(NamedTuple):
    """One thing that was consumed; all as in ``formgate.v1.UsageRecord``."""

    record_id: str
    """Unique in the account: however often it is sent, it counts once."""
    key_id: str
    units: int = 1
    operation: str = ""
    resource: str = ""
    status_code: int = 0
    latency: timedelta | None = None
    occur_time: datetime | None = None
    """With its zone. None: when it is recorded."""
    tags: Mapping[str, str] | None = None
    charge_units: int | None = None
    refund_request_id: str = ""


class UsageFields(TypedDict, total=False):
    """What may be said of a record beside its key and units; see ``Usage``."""

    record_id: str
    operation: str
    resource: str
    status_code: int
    latency: timedelta | None
    occur_time: datetime | None
    tags: Mapping[str, str] | None
    charge_units: int | None
    refund_request_id: str


def to_bytes(usage: Usage) -> bytes:
    """Write a record. Its time is set here, so that it says the same however late it arrives.

    Raises InvalidRequestError for what can not be written or sent; whether it is acceptable is for the service to say.
    """
    told = "has a value of the wrong type or size, a time without its zone, or text that is no Unicode"
    wrong = invalid_field("record", told)
    occur_time = usage.occur_time or datetime.now(UTC)
    if occur_time.tzinfo is None:
        raise wrong
    try:
        stamp = Timestamp()
        stamp.FromDatetime(occur_time)
        latency = None
        if usage.latency is not None:
            latency = Duration()
            latency.FromTimedelta(usage.latency)
        payload = pb.UsageRecord(
            record_id=usage.record_id,
            key_id=usage.key_id,
            units=usage.units,
            operation=usage.operation,
            resource=usage.resource,
            status_code=usage.status_code,
            latency=latency,
            occur_time=stamp,
            tags=usage.tags,
            charge_units=usage.charge_units,
            refund_request_id=usage.refund_request_id,
        ).SerializeToString(deterministic=True)
    except (TypeError, ValueError, AttributeError):
        raise wrong from None
    if len(payload) > _LARGEST:
        raise invalid_field("record", f"has {len(payload):,} bytes; {_LARGEST:,} are the most")
    return payload


def from_bytes(payload: bytes) -> Usage:
    """Read a record that ``to_bytes`` wrote."""
    record = pb.UsageRecord.FromString(payload)
    return Usage(
        record.record_id,
        record.key_id,
        record.units,
        record.operation,
        record.resource,
        record.status_code,
        record.latency.ToTimedelta() if record.HasField("latency") else None,
        record.occur_time.ToDatetime(UTC),
        dict(record.tags) or None,
        record.charge_units if record.HasField("charge_units") else None,
        record.refund_request_id,
    )


def id_of(payload: bytes) -> str:
    """Return the id of a record that ``to_bytes`` wrote."""
    return pb.UsageRecord.FromString(payload).record_id
