"""Leases as messages."""

from __future__ import annotations

import hashlib

from google.protobuf.duration_pb2 import Duration

from formgate.v1 import authorization_pb2 as pb
from formgate.v1 import resources_pb2
from formgate_server.core import fields
from formgate_server.core.errors import InvalidArgumentError
from formgate_server.core.lease_key import MOST_UNITS, Lease, LeaseAnswer, LeaseQuery, Refused, Settlement
from formgate_server.core.verdict import KeyRecord
from formgate_server.rpc.convert import number, tell_limit, timestamp, to_duration
from formgate_server.rpc.told import check_response, checked_key

_ID_BYTES = 16


def lease_query(message: pb.LeaseKeyRequest) -> LeaseQuery:
    """Read what a caller wants to be leased. Raises InvalidArgumentError."""
    return LeaseQuery(
        key=message.key,
        source_ip=fields.source_ip(message.source_ip),
        want_units=fields.number(message.want_units, "want_units", smallest=1, largest=MOST_UNITS),
        lease_id=fields.identifier(message.lease_id, "lease_id"),
        policy=fields.identifier(message.policy, "policy"),
    )


def settlement(message: pb.LeaseSettlement, field: str) -> Settlement:
    """Read what is left of a lease. Raises InvalidArgumentError."""
    return Settlement(
        fields.required(message.account_id, f"{field}.account_id"),
        fields.required(message.key_id, f"{field}.key_id"),
        fields.required(message.lease_id, f"{field}.lease_id"),
        fields.number(message.unused, f"{field}.unused"),
    )


def lease_response(answer: LeaseAnswer, known_rules: bytes) -> pb.LeaseKeyResponse:
    """Write the answer; rules that the caller has already are left out."""
    if isinstance(answer, Lease):
        return pb.LeaseKeyResponse(lease=_lease(answer, known_rules))
    if isinstance(answer, Refused):
        return pb.LeaseKeyResponse(refusal=_refusal(answer))
    if answer.allowed:
        raise InvalidArgumentError("key", "is not denied")  # never: what is no lease and no refusal denies
    return pb.LeaseKeyResponse(denial=pb.CheckKeyResponse.FromString(check_response(answer)))


def _refusal(refused: Refused) -> pb.LeaseRefusal:
    reason = pb.LEASE_REFUSAL_REASON_TOO_LITTLE_LEFT
    if refused.off:
        reason = pb.LEASE_REFUSAL_REASON_OFF
    elif refused.degraded:
        reason = pb.LEASE_REFUSAL_REASON_DEGRADED
    return pb.LeaseRefusal(reason=reason, retry_after=to_duration(refused.retry_after) or Duration())


def _lease(lease: Lease, known_rules: bytes) -> pb.Lease:
    rules_id, rules = lease.record.leased or _rules(lease.record)
    message = pb.Lease(
        lease_id=lease.lease_id,
        units=lease.units,
        unlimited=lease.unlimited,
        duration=to_duration(lease.duration),
        expire_time=timestamp(lease.expire_time),
        epoch=lease.record.epoch,
        rules_id=rules_id,
    )
    if known_rules != rules_id:
        message.rules.MergeFromString(rules)
    for standing in lease.limits:
        tell_limit(message.limits.add(), standing)
    return message


def _rules(record: KeyRecord) -> tuple[bytes, bytes]:
    """Write the rules that a key is decided by, and keep them."""
    policy = record.policy
    standing = record.standing
    rules = pb.LeaseRules(
        key=checked_key(record.key),
        policy=policy.name,
        has_ceiling=record.ceiling is not None,
        permissions={name: number(level) for name, level in policy.catalogue.levels.items()},
        open_catalogue=policy.catalogue.is_open,
        http_methods={name: number(level) for name, level in policy.methods.items()},
        api_groups=sorted(standing.api_groups),
        ip_rules=record.key.ip_rules,
    )
    for granted, told in ((record.granted, rules.grants), (record.ceiling or (), rules.ceiling)):
        for each in granted:
            told.append(
                resources_pb2.Grant(resource=each.resource, permissions=each.permissions, level=number(each.level))
            )
    written = rules.SerializeToString(deterministic=True)
    rules_id = hashlib.sha256(written).digest()[:_ID_BYTES]
    record.keep_leased(rules_id, written)
    return rules_id, written
