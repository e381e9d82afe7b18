"""Accounts, keys, service tokens and the audit trail, in memory."""

from __future__ import annotations

import asyncio
from collections import ChainMap
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, MutableMapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, TypeVar

from formgate_server.core.errors import AlreadyExistsError
from formgate_server.core.model import Account, AuditEvent, Key, ServiceToken
from formgate_server.core.ports import Cursor, KeyFilter, Scope

if TYPE_CHECKING:
    from formgate_server.core.ports import Transaction

_K = TypeVar("_K")
_V = TypeVar("_V")


@dataclass(frozen=True, slots=True)
class Tables:
    """What is stored."""

    accounts: MutableMapping[str, Account] = field(default_factory=dict)
    keys: MutableMapping[str, Key] = field(default_factory=dict)
    secrets: MutableMapping[bytes, str] = field(default_factory=dict)
    """Key id by digest."""
    key_requests: MutableMapping[tuple[str, str], str] = field(default_factory=dict)
    """Key id by account id and request id."""
    tokens: MutableMapping[str, ServiceToken] = field(default_factory=dict)
    token_secrets: MutableMapping[bytes, str] = field(default_factory=dict)
    """Token id by digest."""
    audit: MutableMapping[str, tuple[AuditEvent, ...]] = field(default_factory=dict)
    """By account id, in order."""

    def overlaid(self) -> Tables:
        """Return tables that read from these, and write beside them."""
        return Tables(*(ChainMap({}, getattr(self, each.name)) for each in fields(self)))

    def take(self, overlaid: Tables) -> None:
        """Take over what was written to ``overlaid`` tables of these."""
        for each in fields(self):
            getattr(self, each.name).update(getattr(overlaid, each.name).maps[0])


class MemoryTransaction:
    """The Transaction port. Only one is under way at a time, so all that it reads is locked."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    async def account(self, account_id: str) -> Account | None:
        """See ``Transaction``."""
        return self._tables.accounts.get(account_id)

    async def insert_account(self, account: Account) -> None:
        """See ``Transaction``."""
        _insert(self._tables.accounts, account.account_id, account)

    async def update_account(self, account: Account) -> None:
        """See ``Transaction``."""
        self._tables.accounts[account.account_id] = account

    async def key(self, key_id: str) -> Key | None:
        """See ``Transaction``."""
        return self._tables.keys.get(key_id)

    async def insert_key(self, key: Key, digest: bytes, pepper_id: str, request_id: str) -> None:  # noqa: ARG002 - every pepper lives as long as this process
        """See ``Transaction``."""
        _insert(self._tables.keys, key.key_id, key)
        _insert(self._tables.secrets, digest, key.key_id)
        if request_id:
            _insert(self._tables.key_requests, (key.account_id, request_id), key.key_id)

    async def key_of_request(self, account_id: str, request_id: str) -> str | None:
        """See ``Transaction``."""
        return self._tables.key_requests.get((account_id, request_id))

    async def update_key(self, key: Key) -> None:
        """See ``Transaction``."""
        known = self._tables.keys[key.key_id]
        used = replace(key, last_used_time=known.last_used_time, last_used_ip=known.last_used_ip)
        self._tables.keys[key.key_id] = used

    async def raise_epoch(self, account_id: str) -> int:
        """See ``Transaction``."""
        account = self._tables.accounts[account_id]
        raised = replace(account, epoch=account.epoch + 1)
        self._tables.accounts[account_id] = raised
        return raised.epoch

    async def token(self, token_id: str) -> ServiceToken | None:
        """See ``Transaction``."""
        return self._tables.tokens.get(token_id)

    async def insert_token(self, token: ServiceToken, digest: bytes, pepper_id: str) -> None:  # noqa: ARG002 - as above
        """See ``Transaction``."""
        _insert(self._tables.tokens, token.token_id, token)
        _insert(self._tables.token_secrets, digest, token.token_id)

    async def token_of_digest(self, digests: Sequence[bytes]) -> ServiceToken | None:
        """See ``Transaction``."""
        return _by_digest(digests, self._tables.token_secrets, self._tables.tokens)

    async def update_token(self, token: ServiceToken) -> None:
        """See ``Transaction``."""
        self._tables.tokens[token.token_id] = token

    async def audit(self, event: AuditEvent) -> None:
        """See ``Transaction``."""
        self._tables.audit[event.account_id] = (*self._tables.audit.get(event.account_id, ()), event)


class MemoryRegistry:
    """The Registry port."""

    def __init__(self) -> None:
        self.tables = Tables()
        self._changing = asyncio.Lock()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """See ``Registry``."""
        async with self._changing:
            written = self.tables.overlaid()
            yield MemoryTransaction(written)
            self.tables.take(written)

    async def account(self, account_id: str) -> Account | None:
        """See ``Registry``."""
        return self.tables.accounts.get(account_id)

    async def plans(self) -> set[tuple[str, str]]:
        """See ``Registry``."""
        return {(account.policy, account.plan) for account in self.tables.accounts.values()}

    async def accounts(self, scope: Scope, after: Cursor | None, most: int) -> list[Account]:
        """See ``Registry``."""
        found = (
            account
            for account in self.tables.accounts.values()
            if scope.account_id in ("", account.account_id) and scope.policy in ("", account.policy)
        )
        return _page(found, lambda account: Cursor(account.create_time, account.account_id), after, most)

    async def key(self, key_id: str) -> Key | None:
        """See ``Registry``."""
        return self.tables.keys.get(key_id)

    async def keys(self, wanted: KeyFilter, after: Cursor | None, most: int) -> list[Key]:
        """See ``Registry``."""
        found = (
            key
            for key in self.tables.keys.values()
            if key.account_id == wanted.account_id
            and wanted.state in (0, key.state)
            and wanted.environment in (0, key.environment)
            and wanted.created_by in ("", key.created_by)
        )
        return _page(found, lambda key: Cursor(key.create_time, key.key_id), after, most)

    async def token_by_digest(self, digests: Sequence[bytes]) -> ServiceToken | None:
        """See ``Registry``."""
        return _by_digest(digests, self.tables.token_secrets, self.tables.tokens)

    async def tokens(self, scope: Scope, after: Cursor | None, most: int) -> list[ServiceToken]:
        """See ``Registry``."""
        found = (
            token
            for token in self.tables.tokens.values()
            if scope.account_id in ("", token.account_id) and scope.policy in ("", token.policy)
        )
        return _page(found, lambda token: Cursor(token.create_time, token.token_id), after, most)

    async def note_used(self, last_used: Mapping[str, tuple[int, str]]) -> None:
        """See ``Registry``."""
        async with self._changing:
            for key_id, (time, ip) in last_used.items():
                key = self.tables.keys.get(key_id)
                if key is not None and (key.last_used_time is None or key.last_used_time < time):
                    self.tables.keys[key_id] = replace(key, last_used_time=time, last_used_ip=ip)


def _insert(table: MutableMapping[_K, _V], key: _K, value: _V) -> None:
    if key in table:
        raise AlreadyExistsError("There is one with this id already.")
    table[key] = value


def _by_digest(digests: Iterable[bytes], secrets: Mapping[bytes, str], things: Mapping[str, _V]) -> _V | None:
    return next((things[secrets[digest]] for digest in digests if digest in secrets), None)


def _page(found: Iterable[_V], cursor: Callable[[_V], Cursor], after: Cursor | None, most: int) -> list[_V]:
    following = [each for each in found if after is None or cursor(each) > after]
    return sorted(following, key=cursor)[:most]
