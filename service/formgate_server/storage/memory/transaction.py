"""A change under way, in memory."""

from __future__ import annotations

import time
from collections.abc import MutableMapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from formgate_server.core.audit import FIRST, linked
from formgate_server.core.errors import AlreadyExistsError
from formgate_server.core.model import KeyState
from formgate_server.core.ports import AuditRow
from formgate_server.storage.memory.tables import KeptSecret

if TYPE_CHECKING:
    from formgate_server.core.audit import AuditKeys
    from formgate_server.core.model import Account, AuditEvent, Key, Member, ServiceToken
    from formgate_server.core.ports import Sealed, StoredSecret
    from formgate_server.storage.memory.tables import Tables

_K = TypeVar("_K")
_V = TypeVar("_V")


class MemoryTransaction:
    """The Transaction port. Only one is under way at a time, so all that it reads is locked."""

    def __init__(self, tables: Tables, audit_keys: AuditKeys) -> None:
        self._tables = tables
        self._audit_keys = audit_keys

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
        return self._tables.key(key_id)

    async def insert_key(self, key: Key, secret: StoredSecret, request_id: str) -> None:
        """See ``Transaction``."""
        _insert(self._tables.keys, key.key_id, key)
        self._add_secret(key.key_id, secret)
        if request_id:
            _insert(self._tables.key_requests, (key.account_id, request_id), key.key_id)

    async def count_keys(self, account_id: str) -> int:
        """See ``Transaction``."""
        return sum(key.state is not KeyState.REVOKED for key in self._tables.keys_of(account_id))

    async def keys_created_by(self, account_id: str, member_id: str) -> list[Key]:
        """See ``Transaction``."""
        created = (key for key in self._tables.keys_of(account_id) if key.created_by == member_id)
        return sorted(created, key=lambda key: key.key_id)

    async def replace_secret(self, key_id: str, secret: StoredSecret, until: int) -> None:
        """See ``Transaction``. The replaced secret's box goes: nobody may ask for it any more."""
        older = [(digest, kept) for digest, kept in self._tables.secrets.items() if kept.key_id == key_id]
        for digest, kept in older:
            self._tables.secrets[digest] = KeptSecret(key_id, until if kept.end is None else min(kept.end, until))
        self._add_secret(key_id, secret)

    async def sealed_secret(self, key_id: str) -> Sealed | None:
        """See ``Transaction``."""
        newest = self._tables.newest.get(key_id)
        return None if newest is None else self._tables.secrets[newest].sealed

    async def delete_key(self, key_id: str, now: int) -> None:
        """See ``Transaction``. The digest stays, so that nobody else's key gets this secret; the sealed secret goes."""
        self._tables.deleted[key_id] = now
        self._tables.secrets[self._tables.newest[key_id]] = KeptSecret(key_id)

    async def key_of_request(self, account_id: str, request_id: str) -> str | None:
        """See ``Transaction``."""
        return self._tables.key_requests.get((account_id, request_id))

    async def update_key(self, key: Key) -> None:
        """See ``Transaction``."""
        known = self._tables.keys[key.key_id]
        used = replace(key, last_used_time=known.last_used_time, last_used_ip=known.last_used_ip)
        self._tables.keys[key.key_id] = used

    async def member(self, account_id: str, member_id: str) -> Member | None:
        """See ``Transaction``."""
        return self._tables.members.get((account_id, member_id))

    async def put_member(self, member: Member) -> None:
        """See ``Transaction``."""
        self._tables.members[member.account_id, member.member_id] = member

    async def delete_member(self, account_id: str, member_id: str) -> None:
        """See ``Transaction``."""
        self._tables.members[account_id, member_id] = None

    async def raise_epoch(self, account_id: str) -> int:
        """See ``Transaction``."""
        account = self._tables.accounts[account_id]
        raised = replace(account, epoch=account.epoch + 1)
        self._tables.accounts[account_id] = raised
        self._tables.changes[account_id, raised.epoch] = time.time_ns() // 1_000
        return raised.epoch

    async def token(self, token_id: str) -> ServiceToken | None:
        """See ``Transaction``."""
        return self._tables.tokens.get(token_id)

    async def insert_token(self, token: ServiceToken, digest: bytes, pepper_id: str) -> None:  # noqa: ARG002 - every pepper lives as long as this process
        """See ``Transaction``."""
        _insert(self._tables.tokens, token.token_id, token)
        _insert(self._tables.token_secrets, digest, token.token_id)

    async def replace_token_digest(self, token_id: str, digest: bytes, pepper_id: str) -> None:  # noqa: ARG002 - as above
        """See ``Transaction``."""
        for each, owner in self._tables.token_secrets.items():
            if owner == token_id:
                self._tables.token_secrets[each] = None
        self._tables.token_secrets[digest] = token_id

    async def token_of_digest(self, digests: Sequence[bytes]) -> ServiceToken | None:
        """See ``Transaction``."""
        return self._tables.token_of_digest(digests)

    async def update_token(self, token: ServiceToken) -> None:
        """See ``Transaction``."""
        self._tables.tokens[token.token_id] = token

    async def audit(self, event: AuditEvent) -> None:
        """See ``Transaction``."""
        rows = self._tables.audit.get(event.account_id, ())
        previous = rows[-1].mac if rows else FIRST
        sequence = len(rows) + 1
        mac, mac_key_id = self._audit_keys.mac(linked(previous, sequence, event))
        self._tables.audit[event.account_id] = (*rows, AuditRow(sequence, event, mac, mac_key_id))

    def _add_secret(self, key_id: str, secret: StoredSecret) -> None:
        _insert(self._tables.secrets, secret.digest, KeptSecret(key_id, None, secret.sealed))
        self._tables.newest[key_id] = secret.digest


def _insert(table: MutableMapping[_K, _V], key: _K, value: _V) -> None:
    if key in table:
        raise AlreadyExistsError("There is one with this id already.")
    table[key] = value
