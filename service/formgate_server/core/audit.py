"""The audit trail: what changed, by whom, before and after; and the chain that shows when a row was tampered with.

No secret is in the rows: the nouns have none. Each row's MAC covers the row and the MAC before it (an HMAC chain an
account), so that without the key no row can be altered, left out or moved unseen. What the chain
can not see: rows cut off at its end together with the account's head, and whoever has the key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, Protocol

from formgate_server.core.model import Account, AuditEvent, Caller, Key, Member, ServiceToken

Noun = Account | Key | Member | ServiceToken

_TARGETS = {
    Account: ("accounts", "account_id"),
    Key: ("keys", "key_id"),
    Member: ("members", "member_id"),
    ServiceToken: ("service_tokens", "token_id"),
}


def event(  # noqa: PLR0913 - one argument a column
    caller: Caller, action: str, now: int, *, before: Noun | None = None, after: Noun | None, note: str = ""
) -> AuditEvent:
    """Return the row for ``caller``'s ``action``, an RPC, which made ``after`` of ``before`` (None: there is none)."""
    noun = after or before
    assert noun is not None  # noqa: S101 - for the type checker: nothing became nothing
    folder, id_field = _TARGETS[type(noun)]
    return AuditEvent(
        account_id=noun.account_id,
        create_time=now,
        action=action,
        target=f"{folder}/{getattr(noun, id_field)}",
        token_id=caller.token_id,
        actor=caller.actor,
        actor_ip=caller.actor_ip,
        before=None if before is None else snapshot(before),
        after=None if after is None else snapshot(after),
        note=note,
    )


def snapshot(noun: Noun) -> dict[str, Any]:
    """Return a noun as a JSON object."""
    return {field.name: _plain(getattr(noun, field.name)) for field in fields(noun)}


def _plain(value: Any) -> Any:  # noqa: ANN401 - any field's value
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return dict(value)
    if is_dataclass(value):
        own = {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
        return own or type(value).__name__.upper()
    return value


class AuditKeys(Protocol):
    """What signs the chain: one key signs, all verify."""

    def mac(self, message: bytes) -> tuple[bytes, str]:
        """Return the MAC under the newest key, and that key's id."""
        ...

    def verifies(self, message: bytes, mac: bytes, key_id: str) -> bool | None:
        """Tell whether ``mac`` is the message's; None: the key with that id is not there any more."""
        ...


FIRST = b"\0" * 32
"""What stands before the first row's MAC."""


def linked(previous: bytes, sequence: int, event: AuditEvent) -> bytes:
    """Return what a row's MAC is of: the MAC before it and the row, in one form only."""
    row = {field.name: getattr(event, field.name) for field in fields(event)} | {"sequence": sequence}
    return previous + json.dumps(row, sort_keys=True, separators=(",", ":")).encode()
