"""What is stored in memory, and changes beside it that are not committed yet."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from formgate_server.core.model import Account, Key, Member, ServiceToken
    from formgate_server.core.ports import AuditRow, Sealed


class KeptSecret(NamedTuple):
    """Whose a secret is, and until when (None: for ever). Only a key's newest secret is kept ``sealed``."""

    key_id: str
    end: int | None = None
    sealed: Sealed | None = None


@dataclass(frozen=True, slots=True)
class Tables:
    """What is stored. Nothing is ever removed: what is deleted is marked so."""

    accounts: MutableMapping[str, Account] = field(default_factory=dict)
    members: MutableMapping[tuple[str, str], Member | None] = field(default_factory=dict)
    """By account id and member id; None: removed."""
    keys: MutableMapping[str, Key] = field(default_factory=dict)
    """Also those that are deleted."""
    deleted: MutableMapping[str, int] = field(default_factory=dict)
    """When, by key id."""
    secrets: MutableMapping[bytes, KeptSecret] = field(default_factory=dict)
    """By digest."""
    newest: MutableMapping[str, bytes] = field(default_factory=dict)
    """The digest of the secret without an end, by key id."""
    key_requests: MutableMapping[tuple[str, str], str] = field(default_factory=dict)
    """Key id by account id and request id."""
    tokens: MutableMapping[str, ServiceToken] = field(default_factory=dict)
    token_secrets: MutableMapping[bytes, str | None] = field(default_factory=dict)
    """Token id by digest; None: it is nobody's any more."""
    audit: MutableMapping[str, tuple[AuditRow, ...]] = field(default_factory=dict)
    """By account id, in order."""
    changes: MutableMapping[tuple[str, int], int] = field(default_factory=dict)
    """When an account got an epoch."""

    def key(self, key_id: str) -> Key | None:
        """Return the key unless it is deleted."""
        return None if key_id in self.deleted else self.keys.get(key_id)

    def keys_of(self, account_id: str) -> list[Key]:
        """Return an account's keys, deleted ones not."""
        return [key for key in self.keys.values() if key.account_id == account_id and key.key_id not in self.deleted]

    def token_of_digest(self, digests: Iterable[bytes]) -> ServiceToken | None:
        """Return the service token that has one of these secret digests."""
        found = (self.token_secrets.get(digest) for digest in digests)
        return next((self.tokens[token_id] for token_id in found if token_id is not None), None)

    def overlaid(self) -> Tables:
        """Return tables that read from these, and write beside them."""
        return Tables(*(ChainMap({}, getattr(self, each.name)) for each in fields(self)))

    def take(self, overlaid: Tables) -> None:
        """Take over what was written to ``overlaid`` tables of these."""
        for each in fields(self):
            getattr(self, each.name).update(getattr(overlaid, each.name).maps[0])
