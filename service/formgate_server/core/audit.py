"""The audit trail's rows: what changed, by whom, before and after. No secret is in them: the nouns have none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

from formgate_server.core.model import Account, AuditEvent, Caller, Key, ServiceToken

Noun = Account | Key | ServiceToken

_TARGETS = {Account: ("accounts", "account_id"), Key: ("keys", "key_id"), ServiceToken: ("service_tokens", "token_id")}


def event(  # noqa: PLR0913 - one argument a column
    caller: Caller, action: str, now: int, *, before: Noun | None = None, after: Noun, note: str = ""
) -> AuditEvent:
    """Return the row for ``caller``'s ``action``, an RPC, which made ``after`` of ``before`` (None: it is new)."""
    folder, id_field = _TARGETS[type(after)]
    return AuditEvent(
        account_id=after.account_id,
        create_time=now,
        action=action,
        target=f"{folder}/{getattr(after, id_field)}",
        token_id=caller.token_id,
        actor=caller.actor,
        actor_ip=caller.actor_ip,
        before=None if before is None else snapshot(before),
        after=snapshot(after),
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
