"""Accounts: create, get, list, update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from formgate_server.core import audit, fields, fit_key, lookup
from formgate_server.core.changes import Changed, Changes, Effective
from formgate_server.core.errors import AlreadyExistsError, InvalidArgumentError, PermissionDeniedError
from formgate_server.core.model import Account, AccountState, Caller, Limit
from formgate_server.core.paging import Page, page
from formgate_server.core.policy import Policies, Policy
from formgate_server.core.ports import Cursor, Scope, Transaction
from formgate_server.core.secrets import new_id

UPDATABLE = ("plan", "state", "display_name", "time_zone", "limits")


@dataclass(frozen=True, slots=True, kw_only=True)
class NewAccount:
    """An account to make; empty fields have defaults."""

    account_id: str = ""
    display_name: str = ""
    policy: str = ""
    plan: str = ""
    time_zone: str = ""
    limits: tuple[Limit, ...] = ()


class ManageAccounts:
    """What can be done with accounts."""

    def __init__(self, changes: Changes, policies: Policies) -> None:
        self._changes = changes
        self._registry = changes.registry
        self._policies = policies

    async def create(self, caller: Caller, new: NewAccount) -> Account:
        """Make an account. Raises AlreadyExistsError where the id is taken."""
        if caller.account_id:
            message = "a token that is bound to an account makes no others"
            raise PermissionDeniedError(message, reason="TOKEN_BOUND")
        policy = lookup.policy(self._policies, new.policy or caller.policy)
        if not lookup.sees(caller, "", policy.name):
            message = f"this token is bound to policy {caller.policy}"
            raise PermissionDeniedError(message, reason="TOKEN_BOUND")
        now = self._changes.clock.now()
        plan = lookup.plan(policy, new.plan)
        account = Account(
            account_id=fields.identifier(new.account_id, "account_id") or new_id("acc"),
            display_name=fields.display_name(new.display_name),
            policy=policy.name,
            plan=plan,
            state=AccountState.ACTIVE,
            time_zone=fields.time_zone(new.time_zone),
            limits=fit_key.limits(new.limits, policy.plans[plan], "limits"),
            epoch=1,
            version=1,
            create_time=now,
        )

        async def insert(transaction: Transaction) -> Changed[Account]:
            try:
                await transaction.insert_account(account)
            except AlreadyExistsError:
                message = f"account {account.account_id} exists already"
                metadata = {"account_id": account.account_id}
                raise AlreadyExistsError(message, reason="ACCOUNT_EXISTS", metadata=metadata) from None
            await transaction.audit(audit.event(caller, "CreateAccount", now, after=account))
            return Changed(account, account.account_id, None, is_new=True)

        return (await self._changes.apply(insert)).result

    async def get(self, caller: Caller, account_id: str) -> Account:
        """Return an account."""
        return await lookup.account(self._registry, caller, account_id)

    async def list(self, caller: Caller, page_size: int, page_token: str) -> Page[Account]:
        """Return a page of the accounts that the caller sees."""
        scope = Scope(caller.account_id, caller.policy)

        async def fetch(after: Cursor | None, most: int) -> list[Account]:
            return await self._registry.accounts(scope, after, most)

        return await page(fetch, _cursor, ("accounts", scope), page_size, page_token)

    async def update(
        self, caller: Caller, account_id: str, etag: str, paths: Sequence[str], values: Mapping[str, Any]
    ) -> Effective[Account]:
        """Set the fields that ``paths`` name to their ``values``."""

        async def change(transaction: Transaction) -> Changed[Account]:
            before = await lookup.account(transaction, caller, account_id, "account.account_id")
            lookup.match_etag(etag, lookup.etag(before.version))
            policy = self._policies.of(before)
            edited = {path: _checked(path, values[path], policy) for path in paths}
            epoch = await transaction.raise_epoch(account_id)
            after = replace(before, **edited, epoch=epoch, version=before.version + 1)
            fit_key.limits(after.limits, policy.plans[after.plan], "account.limits")
            await transaction.update_account(after)
            now = self._changes.clock.now()
            await transaction.audit(audit.event(caller, "UpdateAccount", now, before=before, after=after))
            return Changed(after, account_id, epoch)

        fields.mask(paths, UPDATABLE)
        return await self._changes.apply(change)


def _checked(path: str, value: Any, policy: Policy) -> Any:  # noqa: ANN401 - the field's type depends on the path
    field = f"account.{path}"
    match path:
        case "plan":
            return lookup.plan(policy, value, field)
        case "state":
            if value is None:
                raise InvalidArgumentError(field, "is required")
            return value
        case "display_name":
            return fields.display_name(value, field)
        case "time_zone":
            return fields.time_zone(value, field)
        case _:
            return fields.limits(value, field)


def _cursor(account: Account) -> Cursor:
    return Cursor(account.create_time, account.account_id)
