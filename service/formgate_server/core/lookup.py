"""Finding things for a caller: what it may not know of is not found."""

from __future__ import annotations

from typing import Protocol

from formgate_server.core import fields
from formgate_server.core.errors import AbortedError, InvalidArgumentError, NotFoundError
from formgate_server.core.model import Account, Caller, Key
from formgate_server.core.policy import Policies, Policy


class Reader(Protocol):
    """What a Registry and a Transaction both can read."""

    async def account(self, account_id: str) -> Account | None:
        """Return the account."""
        ...

    async def key(self, key_id: str) -> Key | None:
        """Return the key."""
        ...


def sees(caller: Caller, account_id: str, policy: str) -> bool:
    """Tell whether the caller may know of an account with this id and policy."""
    return caller.account_id in ("", account_id) and caller.policy in ("", policy)


async def account(reader: Reader, caller: Caller, account_id: str, field: str = "account_id") -> Account:
    """Return the account. Raises NotFoundError."""
    fields.required(account_id, field)
    found = await reader.account(account_id)
    if found is None or not sees(caller, found.account_id, found.policy):
        message = f"account {account_id} does not exist"
        raise NotFoundError(message, reason="ACCOUNT_NOT_FOUND", metadata={"account_id": account_id})
    return found


async def key(reader: Reader, caller: Caller, key_id: str, field: str = "key_id") -> tuple[Key, Account]:
    """Return the key and its account. Raises NotFoundError."""
    fields.required(key_id, field)
    found = await reader.key(key_id)
    owner = None if found is None else await reader.account(found.account_id)
    if found is None or owner is None or not sees(caller, owner.account_id, owner.policy):
        message = f"key {key_id} does not exist"
        raise NotFoundError(message, reason="KEY_NOT_FOUND", metadata={"key_id": key_id})
    return found, owner


def policy(policies: Policies, name: str, field: str = "policy") -> Policy:
    """Return the policy; empty: the server's default."""
    found = policies.by_name.get(name or policies.default)
    if found is None:
        raise InvalidArgumentError(field, f"is none of this server's policies: {', '.join(sorted(policies.by_name))}")
    return found


def plan(of: Policy, name: str, field: str = "plan") -> str:
    """Return the plan's name; empty: the policy's first."""
    if name and name not in of.plans:
        raise InvalidArgumentError(field, f"is no plan of policy {of.name}: {', '.join(of.plans)}")
    return name or of.first_plan.name


def match_etag(given: str, current: str) -> None:
    """Check that a thing is still the one that the caller read. Raises AbortedError."""
    if given and given != current:
        message = "it has changed since it was read: read it again, and repeat the change on that"
        raise AbortedError(message, metadata={"etag": current})


def etag(version: int) -> str:
    """Return the etag of a thing's version."""
    return f"v{version}"
